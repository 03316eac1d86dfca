"""Silero's voice activity detector without a runtime: the network of `silero_vad.onnx` written out in numpy.

The weights are read from the .onnx file itself, so that file stays the only source. One model serves any
number of streams; each keeps its own `VadState`. Audio is mono at 16 kHz, in windows of 512 samples (32 ms).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
WINDOW = 512
CONTEXT = 64
"""Samples of the previous window that the network sees again. Without them it fails silently (AUC 0.50)."""

MODEL_PATH = Path(__file__).parents[2] / "silero_vad.onnx"

Floats = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32] | npt.NDArray[np.int16]

_HIDDEN = 128
_BINS = 129
_FRAME, _HOP, _FRAMES = 256, 128, 4
_FLOAT = 1  # TensorProto.DataType
_LARGEST_BATCH = 32  # beyond it the intermediate results leave the cache, and a window gets dearer again
_TOGETHER = 4  # windows in one matrix product
_ZERO, _HALF = np.zeros((), np.float32), np.full((), 0.5, np.float32)
_SCALE = np.float32(1 / 32_768)


class VadState:
    """What the network remembers of one stream: 64 samples of context, then the LSTM's h and c."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = np.zeros(CONTEXT + 2 * _HIDDEN, np.float32)


class _Workspace:
    """Arrays for a batch of one size, and the overlapping views that make convolutions into products."""

    def __init__(self, batch: int) -> None:
        def zeros(*shape: int) -> Floats:
            return np.zeros(shape, np.float32)

        def with_one(*shape: int) -> tuple[Floats, Floats]:
            full = np.ones((*shape[:-1], shape[-1] + 1), np.float32)
            return full.reshape(-1, shape[-1] + 1), full[..., :-1]

        self.state = zeros(batch, CONTEXT + 2 * _HIDDEN)
        self.flat_state = self.state.reshape(-1)
        self.rows = list(self.state)
        self.context = self.state[:, :CONTEXT]
        self.h = self.state[:, CONTEXT:-_HIDDEN]
        self.c = self.state[:, -_HIDDEN:]

        # Reflected at the end as upstream does: 576 samples become four frames of 256, 128 apart.
        self.samples = zeros(batch, CONTEXT + WINDOW + CONTEXT)
        self.left = self.samples[:, :CONTEXT]
        self.window = self.samples[:, CONTEXT:-CONTEXT]
        self.newest = self.samples[:, WINDOW:-CONTEXT]
        self.mirror = self.samples[:, WINDOW - 2 + CONTEXT : WINDOW - 2 : -1]
        self.right = self.samples[:, -CONTEXT:]
        self.frames = _unfold(self.samples, _FRAMES, _FRAME, _HOP)
        self.windowed = zeros(batch, _FRAMES, _FRAME)
        self.spectrum: Any = np.zeros((batch, _FRAMES, _BINS), np.complex64)

        # A row of zeros on either side pads the first convolution; one before, the second, whose stride is 2.
        padded = zeros(batch, _FRAMES + 2, _BINS)
        self.magnitude = padded[:, 1:-1]
        self.patches1 = _unfold(padded, _FRAMES, 3 * _BINS, _BINS)
        padded = zeros(batch, _FRAMES + 1, 128)
        self.relu1 = padded[:, 1:]
        self.patches2 = _unfold(padded, 2, 3 * 128, 2 * 128)

        # What a matrix is applied to ends in a 1, which takes in the bias.
        self.in1, self.values1 = with_one(batch, _FRAMES, 3 * _BINS)
        self.out1 = zeros(batch * _FRAMES, 128)
        self.conv1 = self.out1.reshape(self.relu1.shape)
        self.in2, self.values2 = with_one(batch, 2, 3 * 128)
        self.out2 = zeros(batch * 2, 64)
        self.conv2 = self.out2.reshape(batch, 128)
        self.in3, self.values3 = with_one(batch, 128)
        self.out3 = zeros(batch, 64)
        self.in4, self.values4 = with_one(batch, 64)
        self.out4 = zeros(batch, 128)
        self.lstm_in, values = with_one(batch, 2 * _HIDDEN)
        self.features, self.recurrent = values[:, :_HIDDEN], values[:, _HIDDEN:]
        self.gates = zeros(batch, 4 * _HIDDEN)
        self.sigmoids = self.gates[:, : 3 * _HIDDEN]
        self.i, self.f, self.o, self.g = (self.gates[:, k : k + _HIDDEN] for k in range(0, 4 * _HIDDEN, _HIDDEN))
        self.tmp = zeros(batch, _HIDDEN)
        self.head_in, self.rectified = with_one(batch, _HIDDEN)


def _unfold(a: Floats, rows: int, width: int, step: int) -> Floats:
    """Overlapping windows of each batch entry, without a copy: [batch, …] -> [batch, rows, width]."""
    return np.lib.stride_tricks.as_strided(a, (len(a), rows, width), (a.strides[0], 4 * step, 4), writeable=False)


class SileroVADModel:
    """Silero VAD 6.2 at 16 kHz. Shared by all streams; threads may share it.

    Equal to the upstream graph within 1e-5. Raises OSError if `path` cannot be read and ValueError if it is
    not that model.
    """

    def __init__(self, path: str | Path = MODEL_PATH) -> None:
        try:
            self._unpack(_read_weights(Path(path)))
        except (LookupError, ValueError, TypeError, StopIteration) as error:
            raise ValueError(f"{path} is not the Silero VAD model") from error
        self._workspaces: dict[int, _Workspace] = {}

    def _unpack(self, weights: dict[str, Floats]) -> None:
        def conv(layer: int, taps: slice) -> Floats:
            kernel = weights[f"encoder.{layer}.reparam_conv.weight"][:, :, taps].transpose(2, 1, 0)
            return np.vstack([kernel.reshape(-1, kernel.shape[-1]), weights[f"encoder.{layer}.reparam_conv.bias"]])

        # The basis is a Fourier matrix under a window: its first row, the constant one, is that window.
        self._hann = weights["stft.forward_basis_buffer"][0, 0].copy()
        # Of three taps the last two layers can use two and one: the others fall on padding.
        self._convs = [conv(0, slice(0, 3)), conv(1, slice(0, 3)), conv(2, slice(1, 3)), conv(3, slice(1, 2))]

        # Gates in the order i, f, o, g, so that the three sigmoids lie together; their arguments are halved
        # because sigmoid(x) = tanh(x / 2) / 2 + 1 / 2 leaves a single tanh over all four.
        order = np.r_[0:256, 384:512, 256:384]
        half = np.where(np.arange(512) < 384, _HALF, np.float32(1))
        bias = weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"]
        lstm = np.vstack([weights["decoder.rnn.weight_ih"].T, weights["decoder.rnn.weight_hh"].T, bias])
        self._lstm = np.ascontiguousarray(lstm[:, order] * half)
        self._head = np.append(weights["decoder.decoder.2.weight"], weights["decoder.decoder.2.bias"]) * _HALF

    def stream(self) -> VadState:
        """The state of a new stream."""
        return VadState()

    def probabilities(self, windows: Samples, states: Sequence[VadState]) -> Floats:
        """Speech probabilities, float32 [B], of one window each of B different streams; `states` move on.

        `windows` is [B, 512], float32 within -1..1 or int16. Raises ValueError on any other shape.
        """
        if windows.shape != (len(states), WINDOW):
            raise ValueError(f"expected {len(states)} windows of {WINDOW} samples, got an array of {windows.shape}")
        if not len(states):
            return np.zeros(0, np.float32)
        if len(states) <= _LARGEST_BATCH:
            return self._step(windows, states)
        cuts = range(0, len(states), _LARGEST_BATCH)
        return np.concatenate(
            [self.probabilities(windows[k : k + _LARGEST_BATCH], states[k : k + _LARGEST_BATCH]) for k in cuts]
        )

    def scan(self, audio: Samples) -> Floats:
        """Probabilities of all windows of one recording, float32 [ceil(n / 512)]; silence fills up the last."""
        windows = np.zeros((-(-len(audio) // WINDOW), WINDOW), np.int16 if audio.dtype == np.int16 else np.float32)
        windows.reshape(-1)[: len(audio)] = audio
        states = [self.stream()]
        found = [self.probabilities(windows[k : k + 1], states) for k in range(len(windows))]
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def _step(self, windows: Samples, states: Sequence[VadState]) -> Floats:
        size = len(states)
        # Taken out while in use, so that another thread makes its own.
        ws = self._workspaces.pop(size, None) or _Workspace(size)
        np.concatenate([state.values for state in states], out=ws.flat_state)
        ws.left[...] = ws.context
        if windows.dtype.kind == "i":
            np.multiply(windows, _SCALE, out=ws.window)
        else:
            ws.window[...] = windows
        ws.context[...] = ws.newest
        self._encode(ws)
        found = self._decode(ws)
        for state, values in zip(states, ws.rows, strict=True):
            state.values[...] = values
        self._workspaces[size] = ws
        return found

    def _encode(self, ws: _Workspace) -> None:
        """Samples -> features: short-time Fourier magnitudes, then four convolutions."""
        w1, w2, w3, w4 = self._convs
        ws.right[...] = ws.mirror
        np.multiply(ws.frames, self._hann, out=ws.windowed)
        np.abs(np.fft.rfft(ws.windowed, out=ws.spectrum), out=ws.magnitude)
        ws.values1[...] = ws.patches1
        _product(ws.in1, w1, ws.out1, 4 * _TOGETHER)
        np.maximum(ws.conv1, _ZERO, out=ws.relu1)
        ws.values2[...] = ws.patches2
        _product(ws.in2, w2, ws.out2, 2 * _TOGETHER)
        np.maximum(ws.conv2, _ZERO, out=ws.values3)
        np.dot(ws.in3, w3, out=ws.out3)
        np.maximum(ws.out3, _ZERO, out=ws.values4)
        np.dot(ws.in4, w4, out=ws.out4)
        np.maximum(ws.out4, _ZERO, out=ws.features)

    def _decode(self, ws: _Workspace) -> Floats:
        """Features -> probabilities: one LSTM step, and a linear layer over its rectified output."""
        ws.recurrent[...] = ws.h
        _product(ws.lstm_in, self._lstm, ws.gates, _TOGETHER)
        np.tanh(ws.gates, out=ws.gates)
        ws.sigmoids *= _HALF
        ws.sigmoids += _HALF
        ws.c *= ws.f
        np.multiply(ws.i, ws.g, out=ws.tmp)
        ws.c += ws.tmp
        np.tanh(ws.c, out=ws.tmp)
        np.multiply(ws.o, ws.tmp, out=ws.h)
        np.maximum(ws.h, _ZERO, out=ws.rectified)
        found: Floats = np.tanh(np.dot(ws.head_in, self._head))
        found *= _HALF
        found += _HALF
        return found


def _product(rows: Floats, matrix: Floats, out: Floats, at_once: int) -> None:
    """`rows @ matrix`, a few rows at a time: OpenBLAS is fastest so, and starts no threads that spin."""
    for k in range(0, len(rows), at_once):
        np.dot(rows[k : k + at_once], matrix, out=out[k : k + at_once])


def _read_weights(path: Path) -> dict[str, Floats]:
    """The float constants of the 16 kHz graph, by the last part of their names.

    ONNX is protocol buffers; the indices are the field numbers of onnx.proto.
    """
    weights: dict[str, Floats] = {}
    graph = _fields(_fields(memoryview(path.read_bytes()))[7][0])
    attributes = (_fields(attribute) for node in graph[1] for attribute in _fields(node)[5])
    branch = next(_fields(a[6][0]) for a in attributes if a[1] == [b"then_branch"])
    for node in map(_fields, branch[1]):
        if node[4] == [b"Constant"]:
            tensor = _fields(_fields(node[5][0])[5][0])
            if tensor[2] == [_FLOAT]:
                name = bytes(node[2][0]).decode().rpartition("__")[2]
                weights[name] = np.frombuffer(tensor[9][0] if tensor[9] else b"", "<f4").reshape(tensor[1])
    return weights


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """One message of protocol buffers: field number -> its values, integers or the bytes of what is nested."""
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            found[key >> 3].append(value)
        else:
            size, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            found[key >> 3].append(message[at : at + size])
            at += size
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
