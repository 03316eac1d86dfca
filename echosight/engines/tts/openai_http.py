"""A voice that another server makes: ``/audio/speech``, streamed as WAV or bare PCM."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import httpx

from echosight.audio.resampling import MAX_HZ, MIN_HZ, Resampler
from echosight.engines import SpeechChunk
from echosight.engines.runtime.http_client import SPEECH_SILENCE_S, HttpService, endpoint, key_for
from echosight.engines.runtime.retries import SPEECH_S, TransientError, retry_stream
from echosight.engines.tts.wav_stream import WavStream
from echosight.errors import EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

ROUTE = "audio/speech"
RATE = 24_000
"""What OpenAI's PCM has, and what bare PCM is taken for."""

PIECE_MS = 40
"""The shortest piece worth sending on."""

OPENAI_VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")


class OpenAITTS:
    """A `TTS` of 24 kHz, whatever the server speaks at."""

    rate = RATE

    def __init__(
        self, upstream: HttpService, model: str, *, voices: tuple[str, ...] = (), voice: str = "alloy"
    ) -> None:
        self.upstream = upstream
        self.name = f"{model} at {upstream.name}"
        self.voices = voices
        self._model = model
        self._voice = voice

    async def start(self) -> None:
        await self.upstream.reach()

    async def close(self) -> None:
        await self.upstream.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises `TransientError`, `PermanentError` and EngineFailure."""
        asked: dict[str, Any] = {
            "model": self._model,
            "input": text,
            "voice": options.voice or self._voice,
            "response_format": "wav",
            "speed": max(0.25, min(options.speed, 4.0)),
        }
        if options.speaking_style:
            asked["instructions"] = options.speaking_style
        async with aclosing(retry_stream(lambda: fetch(self.upstream, self.rate, json=asked), SPEECH_S)) as pieces:
            async for piece in pieces:
                yield piece


async def fetch(upstream: HttpService, rate: int, **asked: Any) -> AsyncGenerator[SpeechChunk]:
    """POST, and the sound that comes back as it comes, at `rate`."""
    async with upstream.request("POST", "", **asked) as response:
        wav = WavStream(_bare_rate(response, upstream.name, rate))
        resampler: Resampler | None = None
        ready, since = b"", time.monotonic()
        async with aclosing(cast(AsyncGenerator[bytes], response.aiter_bytes())) as body:
            async for data in body:
                if time.monotonic() > since + upstream.silence_s:
                    raise TransientError(f"{upstream.name} says next to nothing")
                pcm = wav.feed(data)
                if wav.rate is None:
                    continue
                resampler = resampler or Resampler(wav.rate, rate)
                ready += resampler.push(pcm)
                if len(ready) >= rate // 500 * PIECE_MS:
                    yield SpeechChunk(ready)
                    ready, since = b"", time.monotonic()
        if resampler is not None:
            ready += resampler.push(b"", last=True)
        elif not ready:
            raise TransientError(f"{upstream.name} sent no sound")
        if ready:
            yield SpeechChunk(ready)
        if wav.missing:
            raise TransientError(f"{upstream.name} broke off in the middle of a sentence")


def _bare_rate(response: httpx.Response, name: str, rate: int) -> int:
    """Of a body that is no WAV: its content type may say. Raises EngineFailure for compressed sound and for text."""
    kind, _, parameters = response.headers.get("content-type", "audio/wav").lower().partition(";")
    if kind.strip() not in SOUNDS:
        raise EngineFailure(f"{name} answered with {kind}; WAV or PCM was asked for")
    for parameter in parameters.split(";"):
        key, _, value = parameter.strip().partition("=")
        if key == "rate" and value.isdigit() and MIN_HZ <= int(value) <= MAX_HZ:
            rate = int(value)
        elif key == "channels" and value != "1":
            raise EngineFailure(f"{name} answered with {value} channels; mono was asked for")
    return rate


SOUNDS = frozenset(
    {"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/pcm", "audio/l16", "application/octet-stream"}
)


def openai(model: str | None, settings: Settings) -> OpenAITTS:
    """`model` at TTS_API_URL, or else at OPENAI_API_BASE."""
    url = settings.tts_api_url or settings.openai_api_base
    hosted = url.startswith("https://api.openai.com")
    key = key_for(url, settings)
    if hosted and key is None:
        raise SetupError("--tts openai needs a server or a key: set TTS_API_URL, or OPENAI_API_KEY")
    voices = OPENAI_VOICES if hosted else ()
    upstream = HttpService(endpoint(url, ROUTE), key, silence_s=SPEECH_SILENCE_S)
    return OpenAITTS(upstream, model or "tts-1", voices=voices)
