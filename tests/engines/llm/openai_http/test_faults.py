"""Faults of a server, and which of them are retried."""

from __future__ import annotations

from typing import Any

import pytest

from echosight.engines import TextChunk
from echosight.engines.llm.openai_http import OpenAILLM
from echosight.engines.runtime.http_client import HttpService, PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure, SetupError
from tests.engines.llm.openai_http.rig import CHAT, HELLO, OPTIONS, ask, conversation_of, text_of
from tests.engines.upstream import Reply, Request, Server, answer, body, raw, sse, text, trickle, upstream


async def test_three_more_attempts_before_the_first_chunk(server: Server, llm: OpenAILLM, pauses: list[float]) -> None:
    broken = answer({}, 500)
    server.on(CHAT, broken, answer({}, 503), sse(done=False, whole=False), HELLO)
    assert text_of(await ask(llm)) == "Hello."
    assert pauses == [1, 2, 4]
    server.on(CHAT, broken)
    with pytest.raises(TransientError, match=r"service unavailable \(500\)"):
        await ask(llm)
    assert len(server.requests_to(CHAT)) == 8


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("3", 3),
        ("0", 1),
        ("-7", 1),
        ("nan", 1),
        ("soon", 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 1),
    ],
)
async def test_retry_after_sets_the_pause(
    server: Server, llm: OpenAILLM, pauses: list[float], retry_after: str, pause: float
) -> None:
    server.on(CHAT, answer({}, 429, retry_after=retry_after), HELLO)
    assert text_of(await ask(llm)) == "Hello."
    assert pauses == [pause]


async def test_a_long_retry_after_fails_at_once(server: Server, llm: OpenAILLM, pauses: list[float]) -> None:
    server.on(CHAT, answer({}, 429, retry_after="60"), HELLO)
    with pytest.raises(TransientError, match=r"too many requests \(429\)"):
        await ask(llm)
    assert pauses == []


async def test_a_reply_that_breaks_off_in_the_middle_is_not_retried(
    server: Server, llm: OpenAILLM, pauses: list[float]
) -> None:
    for cut in (sse(text("Hel"), done=False, whole=False), sse(text("Hel"), done=False, whole=True)):
        server.on(CHAT, cut)
        chunks: list[Any] = []
        with pytest.raises(TransientError, match="broke off"):
            async for chunk in llm.generate(conversation_of("Hi"), OPTIONS):
                chunks.append(chunk)
        assert chunks == [TextChunk("Hel")]
    assert pauses == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (body(b"<html>busy</html>", kind="text/html"), "text/html instead of a stream"),
        (answer({"choices": []}), "application/json instead of a stream"),
        (body(b"data: {]\n\n", kind="text/event-stream"), "no chat completion"),
        (sse({"choices": [3]}), "no chat completion"),
        (sse(["choices"]), "no chat completion"),
        (sse({"hello": "there"}), "no chat completion"),
        (sse({"choices": [{"delta": {"content": ["a", "list"]}}]}), "no chat completion"),
        (body(b"data: " + bytes(1 << 20), kind="text/event-stream"), "a line of more than"),
        (sse({"error": {"message": "out of memory"}}), "out of memory"),
    ],
)
async def test_a_malformed_reply_fails(server: Server, llm: OpenAILLM, script: Any, message: str) -> None:
    server.on(CHAT, script)
    with pytest.raises(EngineFailure, match=message):
        await ask(llm)


async def test_a_server_without_http_fails_after_all_attempts(
    server: Server, llm: OpenAILLM, pauses: list[float]
) -> None:
    server.on(CHAT, raw(b"SSH-2.0-OpenSSH_9.2\r\n"))
    with pytest.raises(TransientError, match="broke off"):
        await ask(llm)
    assert len(pauses) == 3


async def test_a_rejected_request_is_not_retried(server: Server, llm: OpenAILLM, pauses: list[float]) -> None:
    server.on(CHAT, answer({"error": {"message": "context\nis too long"}}, 400))
    with pytest.raises(PermanentError, match=r"bad request .400.: context is too long"):
        await ask(llm)
    assert pauses == []


async def test_a_silent_server_times_out(server: Server, pauses: list[float]) -> None:
    async def silent(request: Request, reply: Reply) -> None:
        await reply.until_gone()

    server.on(CHAT, silent)
    llm = OpenAILLM(HttpService(f"{server.url}/v1", read_timeout_s=0.05), "tiny")
    await llm.service.start()
    with pytest.raises(TransientError, match="sent nothing for"):
        await ask(llm)
    assert pauses == [1, 2, 4]
    await llm.close()


async def test_sse_comments_do_not_extend_the_timeout(server: Server, pauses: list[float]) -> None:
    server.on(CHAT, trickle(b": still thinking\n\n", kind="text/event-stream"))
    llm = OpenAILLM(HttpService(f"{server.url}/v1", read_timeout_s=0.1), "tiny")
    await llm.service.start()
    with pytest.raises(TransientError, match="sent nothing for"):
        await ask(llm)
    assert len(server.requests_to(CHAT)) == 4
    await llm.close()


async def test_an_endless_error_body_is_cut(server: Server, llm: OpenAILLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echosight.engines.runtime.http_client.DETAIL_TIMEOUT_S", 0.1)
    server.on(CHAT, trickle(b"no ", status=400))
    with pytest.raises(PermanentError, match=r"bad request \(400\): no no"):
        await ask(llm)


async def test_attempts_end_at_the_deadline(
    server: Server, llm: OpenAILLM, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.runtime.retries.RETRY_DEADLINE_S", 2.5)
    server.on(CHAT, answer({}, 500))
    with pytest.raises(TransientError):
        await ask(llm)
    assert pauses == [1, 2]


async def test_an_unreachable_server_fails(pauses: list[float]) -> None:
    async with upstream() as gone:
        llm = OpenAILLM(HttpService(f"{gone.url}/v1"), "tiny")
    await llm.service.start()
    with pytest.raises(TransientError, match="cannot be reached"):
        await ask(llm)
    assert pauses == [1, 2, 4]
    with pytest.raises(SetupError, match=r"No LLM at http.*cannot be reached"):
        await llm.start()
    await llm.close()
