"""A transcriber that another server makes: Whisper and its like behind ``/audio/transcriptions``."""

from __future__ import annotations

import logging
from typing import Any

from echosight.audio.formats import wav_bytes
from echosight.engines.runtime.http_client import SPEECH_SILENCE_S, HttpService, PermanentError, endpoint, key_for
from echosight.engines.runtime.retries import SPEECH_S, retry
from echosight.errors import EngineFailure, SetupError
from echosight.media import AudioChunk, Transcript, Word
from echosight.settings import Settings

log = logging.getLogger(__name__)

ROUTE = "audio/transcriptions"

NO_SPEECH, LOG_PROBABILITY = 0.6, -1.0
"""Whisper's own rule for segments in which nobody spoke."""


class OpenAISTT:
    """A `STT` that sends an utterance whole, when it may be over. It knows no partial texts."""

    def __init__(self, upstream: HttpService, model: str, *, name: str = "", language: str | None = None) -> None:
        self.upstream = upstream
        self.name = f"{name or model} at {upstream.name}"
        self._model = model
        self._language = language
        self._verbose = True
        self._utterances: dict[str, _Utterance] = {}

    async def start(self) -> None:
        await self.upstream.reach()

    async def close(self) -> None:
        self._utterances.clear()
        await self.upstream.close()

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        said = self._utterances.setdefault(utterance, _Utterance(language or self._language))
        said.pcm += pcm
        said.transcript = None
        return None

    async def finish(self, utterance: str) -> Transcript:
        """Raises `TransientError`, `PermanentError` and EngineFailure."""
        said = self._utterances.get(utterance)
        if said is None:
            raise EngineFailure("The transcriber heard nothing of this turn")
        if said.transcript is None:
            pcm = bytes(said.pcm)
            transcript = await retry(lambda: self._transcribe(pcm, said.language), SPEECH_S)
            if len(said.pcm) > len(pcm):
                return transcript
            said.transcript = transcript
        return said.transcript

    async def forget(self, utterance: str) -> None:
        self._utterances.pop(utterance, None)

    async def _transcribe(self, pcm: bytes, language: str | None) -> Transcript:
        if not self._verbose:
            return await self._ask(pcm, language, verbose=False)
        try:
            return await self._ask(pcm, language, verbose=True)
        except PermanentError as error:
            if error.status not in (400, 422):
                raise
        transcript = await self._ask(pcm, language, verbose=False)
        # Only now is it known that it was the word times which it did not take.
        log.info("%s gives no word times", self.upstream.name)
        self._verbose = False
        return transcript

    async def _ask(self, pcm: bytes, language: str | None, *, verbose: bool) -> Transcript:
        form: dict[str, Any] = {"model": self._model, "response_format": "json"}
        if verbose:
            form |= {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        if language:
            form["language"] = language.partition("-")[0]
        answer = await self.upstream.json(
            "POST", "", data=form, files={"file": ("speech.wav", wav_bytes(AudioChunk(pcm)), "audio/wav")}
        )
        try:
            return _transcript(answer)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise EngineFailure(f"{self.upstream.name} sent something that is no transcript") from error


class _Utterance:
    def __init__(self, language: str | None) -> None:
        self.language = language
        self.pcm = bytearray()
        self.transcript: Transcript | None = None


def _transcript(answer: dict[str, Any]) -> Transcript:
    text: str = answer["text"].strip()
    segments = answer.get("segments") or ()
    if segments and all(_is_silence(segment) for segment in segments):
        return Transcript("", (), answer.get("language"))
    return Transcript(text, _placed(text, answer.get("words") or ()), answer.get("language"))


def _is_silence(segment: dict[str, Any]) -> bool:
    nobody, unsure = segment.get("no_speech_prob", 0.0), segment.get("avg_logprob", 0.0)
    return bool(nobody > NO_SPEECH and unsure < LOG_PROBABILITY)


def _placed(text: str, words: Any) -> tuple[Word, ...]:
    """The words where they stand in the text, with the punctuation behind them; those that do not are left out."""
    placed: list[Word] = []
    end = 0
    for word in words:
        at = text.lower().find(str(word["word"]).strip().lower(), end)
        if at >= 0:
            end = at + len(str(word["word"]).strip())
            while end < len(text) and not text[end].isspace() and not text[end].isalnum():
                end += 1
            placed.append(Word(round(float(word["start"]) * 1000), end))
    return tuple(placed)


def at(url: str, model: str, settings: Settings) -> OpenAISTT:
    upstream = HttpService(endpoint(url, ROUTE), key_for(url, settings), silence_s=SPEECH_SILENCE_S)
    return OpenAISTT(upstream, model, language=settings.language)


def openai(model: str | None, settings: Settings) -> OpenAISTT:
    """`model` at WHISPER_URL, or else at OPENAI_API_BASE."""
    url = settings.whisper_url or settings.openai_api_base
    if url.startswith("https://api.openai.com") and key_for(url, settings) is None:
        raise SetupError("--stt openai needs a server or a key: set WHISPER_URL, or OPENAI_API_KEY")
    return at(url, model or "whisper-1", settings)


def groq(model: str | None, settings: Settings) -> OpenAISTT:
    if settings.groq_api_key is None:
        raise SetupError("--stt groq needs a key: set GROQ_API_KEY")
    return at("https://api.groq.com/openai/v1", model or "whisper-large-v3-turbo", settings)
