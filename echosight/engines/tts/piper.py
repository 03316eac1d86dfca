"""Piper as a TTS, by its Python package or by its program. The user provides the files of a voice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.source import first_line
from echosight.engines.tts.local import CHUNK_MS, LocalTTS, split_into_chunks
from echosight.errors import EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

DOWNLOAD_COMMAND = "uv run --extra piper python -m piper.download_voices en_US-lessac-medium"


class PiperModel:
    """A `LocalModel` by the package. A voice is a speaker's name, where the model has several."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rate: int = model.config.sample_rate
        self.voices = tuple(model.config.speaker_id_map)

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The first step computes the whole sentence."""
        from piper import SynthesisConfig

        config = self._model.config
        synthesis = SynthesisConfig(
            speaker_id=config.speaker_id_map.get(options.voice), length_scale=config.length_scale / options.speed
        )
        pcm = b"".join(chunk.audio_int16_bytes for chunk in self._model.synthesize(text, synthesis))
        yield from split_into_chunks(text, pcm, self.rate)


class PiperProgram:
    """A `TTS` by the program ``piper``. It does not mark the end of a sentence, so each has its own process."""

    name = "piper"

    def __init__(self, program: Path, model: Path, config: dict[str, Any]) -> None:
        self.rate: int = config["audio"]["sample_rate"]
        self.voices: tuple[str, ...] = tuple(config.get("speaker_id_map") or ())
        self._speaker_ids: dict[str, int] = config.get("speaker_id_map") or {}
        self._length_scale: float = config.get("inference", {}).get("length_scale", 1.0)
        self._command = (str(program), "--model", str(model), "--output_raw")

    async def start(self) -> None:
        """Nothing is loaded in advance."""

    async def close(self) -> None:
        """A process ends with its sentence."""

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Speech as the program writes it, without words. Raises `EngineFailure`."""
        arguments = ["--length_scale", f"{self._length_scale / options.speed:.3f}"]
        if options.voice in self._speaker_ids:
            arguments += ["--speaker", str(self._speaker_ids[str(options.voice)])]
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, *arguments, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineFailure(f"Piper cannot be started: {error.strerror}") from error
        assert child.stdin and child.stdout
        try:
            with contextlib.suppress(ConnectionError):
                # The program takes each line as a sentence.
                child.stdin.write(" ".join(text.split()).encode() + b"\n")
                await child.stdin.drain()
            child.stdin.close()
            size = 2 * (self.rate * CHUNK_MS // 1000)
            while pcm := await _read(child.stdout, size):
                yield SpeechChunk(pcm)
            if await child.wait():
                raise EngineFailure(f"Piper exited with status {child.returncode}")
        finally:
            if child.returncode is None:
                child.kill()
                # Read to the end of its output: asyncio does not close the pipe before.
                await asyncio.shield(child.communicate())


def make_tts(argument: str | None, settings: Settings) -> LocalTTS | PiperProgram:
    """`argument`: the .onnx file of a voice, with its .onnx.json in the same folder. Raises `SetupError`."""
    program = settings.piper_exe_path and Path(settings.piper_exe_path).expanduser()
    if not program:
        require_extra("Piper", "piper", extra="piper", flag="--tts piper")
    model = Path(argument or settings.piper_model_path).expanduser()
    config = read_config(model)
    if not program:
        return LocalTTS("piper", lambda: load_model(model), config["audio"]["sample_rate"])
    if not os.access(program, os.X_OK):
        raise SetupError(f"PIPER_EXE_PATH={program} is not a program that can be run")
    return PiperProgram(program, model, config)


def read_config(model: Path) -> dict[str, Any]:
    """The .onnx.json file of a voice. Raises `SetupError`."""
    file = model.with_name(model.name + ".json")
    if not model.is_file() or not file.is_file():
        shown = model if model.name else "PIPER_MODEL_PATH"
        raise SetupError(
            f"{shown} is not the .onnx file of a Piper voice with its .onnx.json in the same folder: {DOWNLOAD_COMMAND}"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        int(config["audio"]["sample_rate"])
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{file} does not describe a Piper voice: {DOWNLOAD_COMMAND}") from error
    return config


def load_model(model: Path) -> PiperModel:
    """Raises `SetupError`."""
    from piper import PiperVoice

    try:
        return PiperModel(PiperVoice.load(model))
    except Exception as error:  # ONNX Runtime raises many types for a broken file
        raise SetupError(f"{model} could not be loaded by Piper: {first_line(error)}") from error


async def _read(stream: asyncio.StreamReader, size: int) -> bytes:
    """`size` bytes, or the whole samples that are left at the end."""
    try:
        return await stream.readexactly(size)
    except asyncio.IncompleteReadError as error:
        return error.partial[: len(error.partial) // 2 * 2]
