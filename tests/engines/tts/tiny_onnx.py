"""Voices as ONNX graphs that hum for as long as the text takes: the inputs and outputs of Kokoro and of Piper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FRAME = 600
"""Samples per token."""


def _save(file: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Path:
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "hum", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(file))
    return file


def _hum(tokens: str, shape: str) -> list[Any]:
    """Each token as `FRAME` samples of a value of its own."""
    return [
        helper.make_node("Cast", [tokens], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["small"]),
        helper.make_node("Reshape", ["small", "column"], ["columns"]),
        helper.make_node("Mul", ["columns", "frame"], ["frames"]),
        helper.make_node("Reshape", ["frames", shape], ["audio"]),
    ]


CONSTANTS: dict[str, Any] = {
    "scale": np.float32(0.002),
    "column": np.array([-1, 1], np.int64),
    "frame": np.sin(np.arange(FRAME, dtype=np.float32) / 5)[None],
    "flat": np.array([-1], np.int64),
    "deep": np.array([1, 1, 1, -1], np.int64),
}


def write_kokoro(folder: Path, *, timed: bool) -> Path:
    """`kokoro-v1.0.onnx` and `voices-v1.0.bin`, with durations of a frame a token if `timed`."""
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "n"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["t"])]
    nodes = _hum("tokens", "flat")
    constants = {name: CONSTANTS[name] for name in ("scale", "column", "frame", "flat")}
    if timed:
        outputs.append(helper.make_tensor_value_info("duration", TensorProto.INT64, ["n"]))
        constants["zero"] = np.int64(0)
        constants["one"] = np.int64(1)
        nodes += [
            helper.make_node("Mul", ["tokens", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "one"], ["ones"]),
            helper.make_node("Reshape", ["ones", "flat"], ["duration"]),
        ]
    _save(folder / "kokoro-v1.0.onnx", nodes, inputs, outputs, constants)
    style = np.zeros((512, 1, 4), np.float32)
    with (folder / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, af_heart=style, bf_emma=style, if_sara=style)
    return folder


def write_piper(folder: Path) -> Path:
    """`tiny.onnx` and its description: letters for phonemes, two speakers, 16 kHz."""
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, "n"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("sid", TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, 1, 1, "t"])]
    constants = {name: CONSTANTS[name] for name in ("scale", "column", "frame", "deep")}
    letters = ["_", "^", "$", *" abcdefghijklmnopqrstuvwxyz.,!?'"]
    config = {
        "audio": {"sample_rate": 16_000},
        "espeak": {"voice": "en-us"},
        "phoneme_type": "text",
        "num_symbols": len(letters),
        "num_speakers": 2,
        "speaker_id_map": {"ann": 0, "bob": 1},
        "inference": {"length_scale": 1.0},
        "phoneme_id_map": {letter: [n] for n, letter in enumerate(letters)},
    }
    (folder / "tiny.onnx.json").write_text(json.dumps(config), "utf-8")
    return _save(folder / "tiny.onnx", _hum("input", "deep"), inputs, outputs, constants)
