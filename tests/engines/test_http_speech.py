"""Starting STT and TTS by other servers: addresses and keys."""

from __future__ import annotations

from typing import Any

import pytest

from echosight.engines.runtime.http_client import HttpService
from echosight.engines.stt import openai_http as openai_stt
from echosight.engines.tts import openai_http as openai_tts
from echosight.engines.tts.openai_http import OpenAITTS
from echosight.errors import SetupError
from echosight.settings import Settings
from tests.engines.upstream import answer, upstream


async def test_start_fails_where_no_server_listens() -> None:
    async with upstream() as gone:
        settings = Settings(whisper_url=gone.url, tts_api_url=gone.url)
    for part in (openai_stt.openai(None, settings), openai_tts.openai(None, settings)):
        with pytest.raises(SetupError, match=r"cannot be reached.*check the address http"):
            await part.start()
        await part.close()


async def test_start_fails_where_the_key_is_refused() -> None:
    async with upstream() as server:
        server.on("/v1/audio/speech", answer({"error": {"message": "Incorrect API key"}}, 401))
        tts = OpenAITTS(HttpService(f"{server.url}/v1/audio/speech", "x"), "tts-1")
        with pytest.raises(SetupError, match=r"authentication failed; check the API key \(401\): Incorrect API key"):
            await tts.start()
        await tts.close()


def test_hosted_speech_needs_keys() -> None:
    no_keys: dict[str, Any] = {"openai_api_key": None, "groq_api_key": None}
    for create in (openai_stt.openai, openai_stt.groq, openai_tts.openai):
        with pytest.raises(SetupError, match=r"set .*_API_KEY"):
            create(None, Settings(**no_keys))
