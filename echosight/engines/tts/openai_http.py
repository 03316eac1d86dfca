"""TTS by another server: OpenAI's ``/audio/speech``, streamed as WAV or raw PCM."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import httpx

from echosight.audio.resampling import MAX_HZ, MIN_HZ, Resampler
from echosight.engines import SpeechChunk
from echosight.engines.runtime.http_client import SPEECH_READ_TIMEOUT_S, HttpService, endpoint, key_for
from echosight.engines.runtime.retries import SPEECH_BACKOFF_S, TransientError, retry_stream
from echosight.engines.tts.wav_stream import WavStream
from echosight.errors import EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

ROUTE = "audio/speech"
RATE = 24_000
"""Hz of OpenAI's PCM, assumed for raw PCM without a rate."""

MIN_CHUNK_MS = 40
OPENAI_VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")
MEDIA_TYPES = frozenset(
    {"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/pcm", "audio/l16", "application/octet-stream"}
)
"""Content types of WAV and raw PCM."""


class OpenAITTS:
    """A `TTS` of 24 kHz; other rates of the server are resampled."""

    rate = RATE

    def __init__(self, service: HttpService, model: str, *, voices: tuple[str, ...] = (), voice: str = "alloy") -> None:
        self.service = service
        self.name = f"{model} at {service.name}"
        self.voices = voices
        self.languages: tuple[str, ...] = ()
        self._model = model
        self._voice = voice

    async def start(self) -> None:
        await self.service.ping()

    async def close(self) -> None:
        await self.service.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Also raises `TransientError` and `PermanentError`."""
        if not text.strip():
            # OpenAI rejects an empty input.
            return
        payload: dict[str, Any] = {
            "model": self._model,
            "input": text,
            "voice": options.voice or self._voice,
            "response_format": "wav",
            "speed": max(0.25, min(options.speed, 4.0)),
        }
        if options.speaking_style:
            payload["instructions"] = options.speaking_style
        attempts = retry_stream(lambda: fetch_speech(self.service, self.rate, json=payload), SPEECH_BACKOFF_S)
        async with aclosing(attempts) as chunks:
            async for chunk in chunks:
                yield chunk


async def fetch_speech(service: HttpService, rate: int, **kwargs: Any) -> AsyncGenerator[SpeechChunk]:
    """POST, with the arguments of httpx, and stream the speech of the response, resampled to `rate` Hz.

    Raises `TransientError`, `PermanentError` and `EngineFailure`.
    """
    async with service.request("POST", "", **kwargs) as response:
        wav = WavStream(_bare_rate(response, service.name, rate))
        resampler: Resampler | None = None
        pcm, last_chunk_at = b"", time.monotonic()
        async with aclosing(cast(AsyncGenerator[bytes], response.aiter_bytes())) as body:
            async for data in body:
                if time.monotonic() > last_chunk_at + service.read_timeout_s:
                    raise TransientError(f"{service.name} sends speech too slowly")
                samples = wav.push(data)
                if wav.rate is None:
                    continue
                resampler = resampler or Resampler(wav.rate, rate)
                pcm += resampler.push(samples)
                if len(pcm) >= rate // 500 * MIN_CHUNK_MS:
                    yield SpeechChunk(pcm)
                    pcm, last_chunk_at = b"", time.monotonic()
        if resampler is None:
            raise TransientError(f"{service.name} sent no speech")
        pcm += resampler.push(b"", last=True)
        if pcm:
            yield SpeechChunk(pcm)
        if wav.incomplete:
            raise TransientError(f"{service.name} broke off in the middle of a sentence")


def _bare_rate(response: httpx.Response, name: str, rate: int) -> int:
    """Hz of a body without a WAV header: the content type may tell. Raises `EngineFailure` for other media types."""
    media_type, _, parameters = response.headers.get("content-type", "audio/wav").lower().partition(";")
    if media_type.strip() not in MEDIA_TYPES:
        raise EngineFailure(f"Expected WAV or PCM from {name} but got {media_type}")
    for parameter in parameters.split(";"):
        key, _, value = parameter.strip().partition("=")
        if key == "rate" and value.isdigit() and MIN_HZ <= int(value) <= MAX_HZ:
            rate = int(value)
        elif key == "channels" and value != "1":
            raise EngineFailure(f"Expected mono from {name} but got {value} channels")
    return rate


def openai(model: str | None, settings: Settings) -> OpenAITTS:
    """`model` at TTS_API_URL, or else at OPENAI_API_BASE. Raises `SetupError`."""
    url = settings.tts_api_url or settings.openai_api_base
    hosted = url.startswith("https://api.openai.com")
    key = key_for(url, settings)
    if hosted and key is None:
        raise SetupError("--tts openai needs a server or a key: set TTS_API_URL, or OPENAI_API_KEY")
    service = HttpService(endpoint(url, ROUTE), key, read_timeout_s=SPEECH_READ_TIMEOUT_S)
    return OpenAITTS(service, model or "tts-1", voices=OPENAI_VOICES if hosted else ())
