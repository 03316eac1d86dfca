"""Deepgram's speech over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from echosight.engines import SpeechChunk
from echosight.engines.runtime.http_client import SPEECH_SILENCE_S, HttpService, deepgram_key
from echosight.engines.runtime.retries import SPEECH_S, retry_stream
from echosight.engines.tts.openai_http import fetch
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_VOICE = "aura-2-thalia-en"
VOICES = tuple(f"aura-2-{name}-en" for name in ("thalia", "andromeda", "helena", "apollo", "arcas", "aries"))


class DeepgramTTS:
    """A `TTS`: bare PCM of 24 kHz."""

    rate = 24_000
    voices = VOICES

    def __init__(self, url: str, key: str, voice: str) -> None:
        self._http = HttpService(f"{url.rstrip('/')}/v1/speak", key, scheme="Token", silence_s=SPEECH_SILENCE_S)
        self.name = f"{voice} at {self._http.name}"
        self._voice = voice

    async def start(self) -> None:
        """Raises `SetupError` where nobody answers, or not to this key."""
        await self._http.reach()

    async def close(self) -> None:
        await self._http.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises `TransientError`, `PermanentError` and EngineFailure."""
        params = {
            "model": options.voice or self._voice,
            "encoding": "linear16",
            "sample_rate": str(self.rate),
            "container": "none",
        }

        def ask() -> AsyncGenerator[SpeechChunk]:
            return fetch(self._http, self.rate, params=params, json={"text": text})

        async with aclosing(retry_stream(ask, SPEECH_S)) as pieces:
            async for piece in pieces:
                yield piece


def voice(name: str | None, settings: Settings) -> DeepgramTTS:
    return DeepgramTTS(settings.deepgram_url, deepgram_key(settings), name or DEFAULT_VOICE)
