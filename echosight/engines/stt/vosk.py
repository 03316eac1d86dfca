"""Vosk as a transcriber: it decodes as it hears, and the model's folder comes from the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.worker import Worker
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word
from echosight.settings import Settings

STEP_BYTES = 8_000
"""A quarter of a second: what is decoded before others get their turn."""


@dataclass(slots=True)
class _Utterance:
    """A recogniser and the words of what it has closed: (milliseconds, word)."""

    recognizer: Any
    closed: list[tuple[int, str]] = field(default_factory=list)
    told: str = ""

    def hear(self, pcm: bytes) -> str:
        """What is understood by now."""
        if self.recognizer.AcceptWaveform(pcm):
            self._close(self.recognizer.Result())
        return self._text(json.loads(self.recognizer.PartialResult()).get("partial", ""))

    def finish(self) -> Transcript:
        """All of it. More may follow: the recogniser goes on with a stretch of its own."""
        self._close(self.recognizer.FinalResult())
        text, words = "", []
        for ms, word in self.closed:
            text += f" {word}" if text else word
            words.append(Word(ms, len(text)))
        return Transcript(text, tuple(words))

    def _close(self, result: str) -> None:
        heard = json.loads(result).get("result", ())
        self.closed += [(round(1000 * word["start"]), word["word"]) for word in heard]

    def _text(self, partial: str) -> str:
        return " ".join([*(word for _, word in self.closed), *partial.split()])


class VoskSTT:
    """A `STT`. `build` loads the model and gives what makes a recogniser of it."""

    def __init__(self, name: str, build: Callable[[], Callable[[], Any]]) -> None:
        self.name = name
        self._build = build
        self._worker = Worker("vosk")
        self._recognizer: Callable[[], Any]
        self._utterances: dict[str, _Utterance] = {}

    async def start(self) -> None:
        self._recognizer = await self._worker.call(self._build)

    async def close(self) -> None:
        self._utterances.clear()
        await self._worker.close()

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """Decode it; the language is the model's. Raises `EngineFailure`."""
        heard = self._utterances.get(utterance)
        if heard is None:
            self._utterances[utterance] = heard = _Utterance(await self._call(self._recognizer))
        text = heard.told
        for at in range(0, len(pcm), STEP_BYTES):
            text = await self._hear(heard, pcm[at : at + STEP_BYTES])
        if text == heard.told:
            return None
        heard.told = text
        return text

    async def finish(self, utterance: str) -> Transcript:
        heard = self._utterances.get(utterance)
        if heard is None:
            raise EngineFailure("The transcriber heard nothing of this turn")
        transcript: Transcript = await self._call(heard.finish)
        return transcript

    async def forget(self, utterance: str) -> None:
        self._utterances.pop(utterance, None)

    async def _hear(self, heard: _Utterance, pcm: bytes) -> str:
        text: str = await self._call(lambda: heard.hear(pcm))
        return text

    async def _call(self, work: Callable[[], Any]) -> Any:
        try:
            return await self._worker.call(work)
        except Exception as error:  # the binding raises nothing narrower
            raise EngineFailure(f"Vosk failed: {error}") from error


def transcriber(argument: str | None, settings: Settings) -> VoskSTT:
    """`argument`: the folder of a model. Raises `SetupError`."""
    require_extra("Vosk", "vosk", extra="vosk", flag="--stt vosk")
    named = argument or settings.vosk_model_path
    folder = Path(named).expanduser()
    if not named or not folder.is_dir():
        shown = folder if named else "VOSK_MODEL_PATH"
        raise SetupError(
            f"{shown} is no folder of a Vosk model: unpack one of alphacephei's list of models, such as "
            "vosk-model-small-en-us-0.15, then VOSK_MODEL_PATH=DIR uv run --extra vosk model_server.py --stt vosk"
        )
    return VoskSTT(f"vosk {folder.name}", lambda: read_model(folder))


def read_model(folder: Path) -> Callable[[], Any]:
    """Raises `SetupError`."""
    import vosk

    vosk.SetLogLevel(-1)
    try:
        model = vosk.Model(str(folder))
    except Exception as error:  # the binding raises nothing narrower
        raise SetupError(f"{folder} is no model that Vosk can read; VOSK_MODEL_PATH names another") from error

    def recognizer() -> Any:
        made = vosk.KaldiRecognizer(model, INPUT_SAMPLE_RATE)
        made.SetWords(True)
        return made

    return recognizer
