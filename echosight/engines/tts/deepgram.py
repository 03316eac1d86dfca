"""Deepgram's TTS over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from echosight.engines import SpeechChunk
from echosight.engines.runtime.http_client import SPEECH_READ_TIMEOUT_S, HttpService, deepgram_key
from echosight.engines.runtime.retries import SPEECH_BACKOFF_S, retry_stream
from echosight.engines.tts.openai_http import fetch_speech
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_VOICE = "aura-2-thalia-en"
VOICES = tuple(f"aura-2-{name}-en" for name in ("thalia", "andromeda", "helena", "apollo", "arcas", "aries"))


class DeepgramTTS:
    """A `TTS`: raw PCM of 24 kHz."""

    rate = 24_000
    voices = VOICES
    languages: tuple[str, ...] = ()

    def __init__(self, url: str, key: str, voice: str) -> None:
        self._service = HttpService(
            f"{url.rstrip('/')}/v1/speak", key, scheme="Token", read_timeout_s=SPEECH_READ_TIMEOUT_S
        )
        self.name = f"{voice} at {self._service.name}"
        self._voice = voice

    async def start(self) -> None:
        """Raises `SetupError` where the service does not respond or does not accept the key."""
        await self._service.ping()

    async def close(self) -> None:
        await self._service.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Also raises `TransientError` and `PermanentError`."""
        if not text.strip():
            # Deepgram rejects an empty text.
            return
        params = {
            "model": options.voice or self._voice,
            "encoding": "linear16",
            "sample_rate": str(self.rate),
            "container": "none",
        }

        def attempt() -> AsyncGenerator[SpeechChunk]:
            return fetch_speech(self._service, self.rate, params=params, json={"text": text})

        async with aclosing(retry_stream(attempt, SPEECH_BACKOFF_S)) as chunks:
            async for chunk in chunks:
                yield chunk


def make_tts(voice: str | None, settings: Settings) -> DeepgramTTS:
    """Raises `SetupError` where there is no key."""
    return DeepgramTTS(settings.deepgram_url, deepgram_key(settings), voice or DEFAULT_VOICE)
