"""Piper as a voice, by its package or by its program. The files of the voice come from the user."""

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
from echosight.engines.tts.local import PIECE_MS, LocalTTS, pieces
from echosight.errors import EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

FETCH = "uv run --extra piper python -m piper.download_voices en_US-lessac-medium"


class PiperModel:
    """The model, in the thread that owns it. A voice is a speaker's name, where the model has several."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rate: int = model.config.sample_rate
        self.voices = tuple(model.config.speaker_id_map)

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The whole sentence is computed in the first step."""
        from piper import SynthesisConfig

        config = self._model.config
        wish = SynthesisConfig(
            speaker_id=config.speaker_id_map.get(options.voice), length_scale=config.length_scale / options.speed
        )
        spoken = [chunk.audio_int16_bytes for chunk in self._model.synthesize(text, wish)]
        yield from pieces(text, b"".join(spoken), self.rate)


class PiperProgram:
    """A `TTS` by the program ``piper``, started anew for each sentence, as it does not say where one ends."""

    name = "piper"

    def __init__(self, program: Path, model: Path, config: dict[str, Any]) -> None:
        self.rate: int = config["audio"]["sample_rate"]
        self.voices: tuple[str, ...] = tuple(config.get("speaker_id_map") or ())
        self._speakers: dict[str, int] = config.get("speaker_id_map") or {}
        self._pace: float = config.get("inference", {}).get("length_scale", 1.0)
        self._command = (str(program), "--model", str(model), "--output_raw")

    async def start(self) -> None:
        """There is nothing to load ahead."""

    async def close(self) -> None:
        """Its programs end with their sentences."""

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Speech as the program makes it. Raises `EngineFailure`."""
        wish = ["--length_scale", f"{self._pace / options.speed:.3f}"]
        if options.voice in self._speakers:
            wish += ["--speaker", str(self._speakers[str(options.voice)])]
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, *wish, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineFailure(f"Piper cannot be started: {error.strerror}") from error
        assert child.stdin and child.stdout
        try:
            with contextlib.suppress(ConnectionError):
                # A line is a sentence to it.
                child.stdin.write(" ".join(text.split()).encode() + b"\n")
                await child.stdin.drain()
            child.stdin.close()
            size = 2 * (self.rate * PIECE_MS // 1000)
            while pcm := await _read(child.stdout, size):
                yield SpeechChunk(pcm)
            if await child.wait():
                raise EngineFailure(f"Piper ended with status {child.returncode}")
        finally:
            if child.returncode is None:
                child.kill()
                # To the end of its output: before, asyncio does not let go of the pipe.
                await asyncio.shield(child.communicate())


def voice(argument: str | None, settings: Settings) -> LocalTTS | PiperProgram:
    """`argument`: the .onnx file of a voice, with its .onnx.json beside it. Raises `SetupError`."""
    program = settings.piper_exe_path and Path(settings.piper_exe_path).expanduser()
    if not program:
        require_extra("Piper", "piper", extra="piper", flag="--tts piper")
    model = Path(argument or settings.piper_model_path).expanduser()
    config = read_config(model)
    if not program:
        return LocalTTS("piper", lambda: read_speaker(model), config["audio"]["sample_rate"])
    if not os.access(program, os.X_OK):
        raise SetupError(f"PIPER_EXE_PATH names no program that can be run: {program}")
    return PiperProgram(program, model, config)


def read_config(model: Path) -> dict[str, Any]:
    """What lies beside a voice. Raises `SetupError`."""
    file = model.with_name(model.name + ".json")
    if not model.is_file() or not file.is_file():
        shown = model if model.name else "PIPER_MODEL_PATH"
        raise SetupError(f"{shown} is no .onnx file of a Piper voice with its .onnx.json beside it: {FETCH}")
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        int(config["audio"]["sample_rate"])
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{file} does not describe a Piper voice: {FETCH}") from error
    return config


def read_speaker(model: Path) -> PiperModel:
    """Raises `SetupError`."""
    from piper import PiperVoice

    try:
        return PiperModel(PiperVoice.load(model))
    except Exception as error:  # ONNX Runtime raises what it likes for a broken file
        raise SetupError(f"{model} could not be loaded by Piper: {str(error).splitlines()[0]}") from error


async def _read(stream: asyncio.StreamReader, size: int) -> bytes:
    """So many bytes, or what is left of them at the end."""
    try:
        return await stream.readexactly(size)
    except asyncio.IncompleteReadError as error:
        return error.partial[: len(error.partial) // 2 * 2]
