"""A server on a real socket, and an LLM that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from echosight.engines.llm.openai_http import OpenAILLM
from echosight.engines.runtime.http_client import HttpService
from tests.engines.llm.openai_http.rig import CHAT, HELLO
from tests.engines.upstream import Server, answer, upstream


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with upstream() as running:
        running.on("/v1/models", answer({"data": [{"id": "tiny"}, {"id": "other"}]}))
        running.on(CHAT, HELLO)
        yield running


@pytest.fixture
async def llm(server: Server) -> AsyncIterator[OpenAILLM]:
    llm = OpenAILLM(HttpService(f"{server.url}/v1"), None)
    await llm.start()
    yield llm
    await llm.close()
