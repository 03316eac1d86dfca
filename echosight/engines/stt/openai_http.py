"""STT by another server: Whisper and similar models behind OpenAI's ``/audio/transcriptions``."""

from __future__ import annotations

import logging
import re
from typing import Any

from echosight.audio.formats import wav_bytes
from echosight.engines.runtime.http_client import (
    SPEECH_READ_TIMEOUT_S,
    HttpService,
    PermanentError,
    endpoint,
    key_for,
)
from echosight.engines.runtime.retries import SPEECH_BACKOFF_S, retry
from echosight.engines.stt import STREAM_CLOSED
from echosight.errors import EngineFailure, SetupError
from echosight.media import AudioChunk, Transcript, Word, pcm_ms
from echosight.settings import Settings

log = logging.getLogger(__name__)

ROUTE = "audio/transcriptions"

NO_SPEECH_PROBABILITY, LOG_PROBABILITY = 0.6, -1.0
"""Whisper's own rule for segments without speech (`transcribe.py` of openai/whisper)."""


class OpenAISTT:
    """An `STT` that sends the whole utterance in `finalize`. There are no partial texts."""

    def __init__(self, service: HttpService, model: str, *, name: str = "", language: str | None = None) -> None:
        self.service = service
        self.name = f"{name or model} at {service.name}"
        self._model = model
        self._language = language
        self._has_word_times = True

    async def start(self) -> None:
        await self.service.ping()

    async def close(self) -> None:
        await self.service.close()

    def open(self, language: str | None = None, speaker: str | None = None) -> OpenAIStream:
        return OpenAIStream(self, language or self._language)

    async def transcribe(self, pcm: bytes, language: str | None) -> Transcript:
        """One utterance, PCM16 at `INPUT_SAMPLE_RATE`. Raises `TransientError`, `PermanentError`, `EngineFailure`."""
        try:
            return await self._request(pcm, language, word_times=self._has_word_times)
        except PermanentError as error:
            if error.status not in (400, 422):
                raise
            if language and "language" in error.detail.lower():
                return await self.transcribe(pcm, None)
            if not self._has_word_times:
                raise
        transcript = await self._request(pcm, language, word_times=False)
        # It worked without: so the server refused the word times, and not the audio.
        log.info("%s gives no word times", self.service.name)
        self._has_word_times = False
        return transcript

    async def _request(self, pcm: bytes, language: str | None, *, word_times: bool) -> Transcript:
        form: dict[str, Any] = {"model": self._model, "response_format": "json"}
        if word_times:
            form |= {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        if language:
            form["language"] = language.partition("-")[0]
        payload = await self.service.json(
            "POST", "", data=form, files={"file": ("speech.wav", wav_bytes(AudioChunk(pcm)), "audio/wav")}
        )
        try:
            return _parse(payload, pcm_ms(len(pcm)))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise EngineFailure(f"{self.service.name} sent a response that is no transcript") from error


class OpenAIStream:
    """An `STTStream` that collects the audio; a transcript is kept until there is more."""

    def __init__(self, stt: OpenAISTT, language: str | None) -> None:
        self._stt = stt
        self._language = language
        self._pcm = bytearray()
        self._transcript: Transcript | None = Transcript("")
        self._closed = False

    async def push(self, pcm: bytes) -> str | None:
        self._check_open()
        if pcm:
            self._pcm += pcm
            self._transcript = None
        return None

    async def finalize(self) -> Transcript:
        """Also raises `TransientError` and `PermanentError`."""
        self._check_open()
        if self._transcript is None:
            pcm = bytes(self._pcm)
            transcript = await retry(lambda: self._stt.transcribe(pcm, self._language), SPEECH_BACKOFF_S)
            self._check_open()
            if len(self._pcm) > len(pcm):
                return transcript
            self._transcript = transcript
        return self._transcript

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)


def _parse(payload: dict[str, Any], duration_ms: int) -> Transcript:
    text: str = payload["text"].strip()
    segments = payload.get("segments") or ()
    if segments and all(_is_silent(segment) for segment in segments):
        return Transcript("", (), payload.get("language"))
    return Transcript(text, _align(text, payload.get("words") or (), duration_ms), payload.get("language"))


def _is_silent(segment: dict[str, Any]) -> bool:
    no_speech, log_probability = segment.get("no_speech_prob", 0.0), segment.get("avg_logprob", 0.0)
    return bool(no_speech > NO_SPEECH_PROBABILITY and log_probability < LOG_PROBABILITY)


def _align(text: str, words: Any, duration_ms: int) -> tuple[Word, ...]:
    """The words' positions in `text`, each with the punctuation after it; words that are not in it are dropped."""
    aligned: list[Word] = []
    end = start_ms = 0
    for word in words:
        found = re.compile(re.escape(str(word["word"]).strip()), re.IGNORECASE).search(text, end)
        if found is None or not found[0]:
            continue
        end = found.end()
        while end < len(text) and not text[end].isspace() and not text[end].isalnum():
            end += 1
        # Whisper may give times beyond the audio, and out of order.
        start_ms = max(start_ms, min(round(float(word["start"]) * 1000), duration_ms))
        aligned.append(Word(start_ms, end))
    return tuple(aligned)


def from_url(url: str, model: str, settings: Settings) -> OpenAISTT:
    """The model at ``http(s)://host/v1``. Raises `SetupError` where `url` is not one."""
    service = HttpService(endpoint(url, ROUTE), key_for(url, settings), read_timeout_s=SPEECH_READ_TIMEOUT_S)
    return OpenAISTT(service, model, language=settings.language)


def openai(model: str | None, settings: Settings) -> OpenAISTT:
    """`model` at WHISPER_URL, or else at OPENAI_API_BASE. Raises `SetupError`."""
    url = settings.whisper_url or settings.openai_api_base
    if url.startswith("https://api.openai.com") and key_for(url, settings) is None:
        raise SetupError("--stt openai needs a server or a key: set WHISPER_URL, or OPENAI_API_KEY")
    return from_url(url, model or "whisper-1", settings)


def groq(model: str | None, settings: Settings) -> OpenAISTT:
    """Raises `SetupError` where there is no key."""
    if settings.groq_api_key is None:
        raise SetupError("--stt groq needs a key: set GROQ_API_KEY")
    return from_url("https://api.groq.com/openai/v1", model or "whisper-large-v3-turbo", settings)
