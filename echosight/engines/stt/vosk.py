"""Vosk as an STT: it decodes while audio comes in. The user provides the model's folder."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.worker import Worker
from echosight.engines.stt import STREAM_CLOSED
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word
from echosight.settings import Settings

STEP_BYTES = 8_000
"""A quarter of a second: decoded in one call to the worker, so that other streams get their turn."""

T = TypeVar("T")


class VoskSTT:
    """An `STT`. `build` loads the model and returns a factory of recognisers (`KaldiRecognizer`)."""

    def __init__(self, name: str, build: Callable[[], Callable[[], Any]]) -> None:
        self.name = name
        self._build = build
        self._worker = Worker("vosk")
        self._create_recognizer: Callable[[], Any] | None = None
        self._streams: WeakSet[VoskStream] = WeakSet()

    async def start(self) -> None:
        self._create_recognizer = await self._worker.call(self._build)

    async def close(self) -> None:
        for stream in [*self._streams]:
            await stream.close()
        self._create_recognizer = None
        await self._worker.close()

    def open(self, language: str | None = None, speaker: str | None = None) -> VoskStream:
        """The language is the model's."""
        stream = VoskStream(self._recognizer, self._call)
        self._streams.add(stream)
        return stream

    def _recognizer(self) -> Any:
        if self._create_recognizer is None:
            raise EngineFailure(f"{self.name} is not started")
        return self._create_recognizer()

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await self._worker.call(function)
        except EngineFailure:
            raise
        except Exception as error:  # the binding raises nothing narrower
            raise EngineFailure(f"Vosk failed: {error}") from error


class VoskStream:
    """An `STTStream`: a recogniser, and the words of the segments that it has ended.

    `call` runs a function in the thread of the model.
    """

    def __init__(
        self, create_recognizer: Callable[[], Any], call: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self._create_recognizer = create_recognizer
        self._call = call
        self._recognizer: Any = None
        self._closed = False
        self._words: list[tuple[int, str]] = []
        """(milliseconds, word)."""
        self._reported = ""

    async def push(self, pcm: bytes) -> str | None:
        """Decodes the audio before it returns."""
        if pcm and self._recognizer is None:
            self._recognizer = await self._run(self._create_recognizer)
        text = self._reported
        for start in range(0, len(pcm), STEP_BYTES):
            text = await self._run(partial(self._decode, pcm[start : start + STEP_BYTES]))
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)
        if text == self._reported:
            return None
        self._reported = text
        return text

    async def finalize(self) -> Transcript:
        """Ends the recogniser's segment. A later `push` begins another one, so its text is not changed by this."""
        if self._recognizer is None and not self._closed:
            return Transcript("")
        await self._run(lambda: self._end_segment(self._recognizer.FinalResult()))
        text, words = "", []
        for start_ms, word in self._words:
            text += f" {word}" if text else word
            words.append(Word(start_ms, len(text)))
        return Transcript(text, tuple(words))

    async def close(self) -> None:
        self._closed = True

    async def _run(self, function: Callable[[], Any]) -> Any:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)
        result = await self._call(function)
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)
        return result

    def _decode(self, pcm: bytes) -> str:
        """The text so far."""
        if self._recognizer.AcceptWaveform(pcm):
            self._end_segment(self._recognizer.Result())
        partial = json.loads(self._recognizer.PartialResult()).get("partial", "")
        return " ".join([*(word for _, word in self._words), *partial.split()])

    def _end_segment(self, result: str) -> None:
        words = json.loads(result).get("result", ())
        self._words += [(round(1000 * word["start"]), word["word"]) for word in words]


def make_stt(argument: str | None, settings: Settings) -> VoskSTT:
    """`argument`: the folder of a model, VOSK_MODEL_PATH without. Raises `SetupError`."""
    require_extra("Vosk", "vosk", extra="vosk", flag="--stt vosk")
    path = argument or settings.vosk_model_path
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        problem = f"{folder} is not a folder" if path else "Vosk needs a model"
        raise SetupError(
            f"{problem}: download one from alphacephei's list of models, such as vosk-model-small-en-us-0.15, "
            "then VOSK_MODEL_PATH=DIR uv run --extra vosk model_server.py --stt vosk"
        )
    return VoskSTT(f"vosk {folder.name}", lambda: load_model(folder))


def load_model(folder: Path) -> Callable[[], Any]:
    """A factory of recognisers on the model in `folder`. Raises `SetupError`."""
    import vosk

    vosk.SetLogLevel(-1)
    try:
        model = vosk.Model(str(folder))
    except Exception as error:  # the binding raises nothing narrower
        raise SetupError(f"Vosk cannot read a model from {folder}; set VOSK_MODEL_PATH to another folder") from error

    def create_recognizer() -> Any:
        recognizer = vosk.KaldiRecognizer(model, INPUT_SAMPLE_RATE)
        recognizer.SetWords(True)
        return recognizer

    return create_recognizer
