from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from echosight.conversation import Conversation, ImagePart, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.openai_http import OpenAILLM, from_url, groq, openai
from echosight.engines.runtime.http_client import HttpService, PermanentError, key_for
from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure, SetupError
from echosight.events import Usage
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.upstream import (
    Reply,
    Request,
    Server,
    answer,
    body,
    counted,
    finished,
    raw,
    sse,
    text,
    trickle,
    upstream,
)

CHAT = "/v1/chat/completions"
HELLO = sse(text("Hel"), text("lo."), finished(), counted(7, 2, 5))
OPTIONS = GenerateOptions()


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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts; they are recorded instead of slept."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return pauses


def conversation_of(*texts: str) -> Conversation:
    return Conversation(instructions="Be brief.", items=[Item("user", (TextPart(text),)) for text in texts])


async def ask(
    llm: OpenAILLM, conversation: Conversation | None = None, options: GenerateOptions = OPTIONS
) -> list[TextChunk | ToolCallChunk | GenerationSummary]:
    return [chunk async for chunk in llm.generate(conversation or conversation_of("Hi"), options)]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


# --- requests and replies ----------------------------------------------------------------


async def test_text_is_streamed_and_tokens_are_counted(server: Server, llm: OpenAILLM) -> None:
    chunks = await ask(llm, options=GenerateOptions(temperature=0.5, max_output_tokens=9))
    assert chunks == [
        TextChunk("Hel"),
        TextChunk("lo."),
        GenerationSummary(Usage(input_text=7, cached=5, output_text=2), "stop"),
    ]
    payload = server.asked(CHAT)[0].json
    assert payload == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }
    assert llm.name == f"tiny at 127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("script", "finish"),
    [
        (sse(text("Hello."), finished(), done=False), "stop"),
        (sse(text("Hello."), done=True), "stop"),
        (sse(text("Hello."), finished("length")), "length"),
        (sse(text("Hello."), finished("content_filter")), "content_filter"),
        (sse(text("Hello."), finished("tool_calls")), "stop"),
        (sse(text("Hello."), finished(), done=False, whole=False), "stop"),
        (body(b": hello\r\n\r\ndata:", b'{"choices":[{"delta":{"content":"Hello."}}]}\r\n\r\ndata: [DO', b"NE]\r\n\r\n",
              kind="text/event-stream; charset=utf-8"), "stop"),
    ],
    ids=["no-done", "done-only", "length", "filter", "tools", "cut-when-complete", "odd-chunks"],
)  # fmt: skip
async def test_every_end_of_a_stream_is_understood(server: Server, llm: OpenAILLM, script: Any, finish: str) -> None:
    server.on(CHAT, script)
    assert await ask(llm) == [TextChunk("Hello."), GenerationSummary(finish=finish)]


async def test_text_may_contain_unicode_line_separators(server: Server, llm: OpenAILLM) -> None:
    spoken = "one\u2028two\x85three"
    event = json.dumps({"choices": [text(spoken)["choices"][0] | {"finish_reason": "stop"}]}, ensure_ascii=False)
    cut = [bytes([byte]) for byte in f"data: {event}\r\n\r\n".encode()]
    server.on(CHAT, body(*cut, kind="text/event-stream"))
    assert text_of(await ask(llm)) == spoken


async def test_malformed_usage_does_not_fail_the_reply(server: Server, llm: OpenAILLM) -> None:
    for usage in ({"usage": 3}, {"usage": {"prompt_tokens_details": 3}}, ["usage"]):
        server.on(CHAT, sse(text("Hello."), finished(), usage))
        assert text_of(await ask(llm)) == "Hello."


async def test_a_server_that_keeps_the_stream_open_does_not_delay_the_reply(server: Server, llm: OpenAILLM) -> None:
    closed = asyncio.Event()

    async def keep_open(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="text/event-stream")
        await reply.write(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n')
        await reply.until_gone()
        closed.set()

    server.on(CHAT, keep_open)
    assert await ask(llm) == [TextChunk("Hi"), GenerationSummary()]
    await closed.wait()


async def test_tool_calls_are_streamed(server: Server, llm: OpenAILLM) -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": more["name"]} if "name" in more else {})}
        call_id = {"id": more["id"]} if "id" in more else {}
        return {"choices": [{"delta": {"tool_calls": [{"index": index, **call_id, "function": function}]}}]}

    server.on(
        CHAT,
        sse(call(0, "", id="a", name="weather"), call(0, '{"in":'), call(0, '"Rome"}'),
            call(1, "{}", id="b", name="time"), finished("tool_calls")),
    )  # fmt: skip
    tool = {"type": "function", "name": "weather", "description": "?", "parameters": {"type": "object"}}
    choice = {"type": "function", "name": "weather"}
    chunks = await ask(llm, options=GenerateOptions(tools=(tool,), tool_choice=choice))
    assert chunks[:-1] == [
        ToolCallChunk("a", "weather", ""),
        ToolCallChunk("a", "weather", '{"in":'),
        ToolCallChunk("a", "weather", '"Rome"}'),
        ToolCallChunk("b", "time", "{}"),
    ]
    payload = server.asked(CHAT)[0].json
    function = {key: value for key, value in tool.items() if key != "type"}
    assert payload["tools"] == [{"type": "function", "function": function}]
    assert payload["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_a_field_that_the_server_rejects_is_left_out_from_then_on(server: Server, llm: OpenAILLM) -> None:
    server.on(
        CHAT,
        answer({"detail": "Unexpected fields: {'stream_options'}"}, 422),
        answer({"error": {"message": "'max_tokens' is not supported with this model"}}, 400),
        HELLO,
    )
    options = GenerateOptions(max_output_tokens=5)
    assert text_of(await ask(llm, options=options)) == text_of(await ask(llm, options=options)) == "Hello."
    first, second, third, fourth = (request.json for request in server.asked(CHAT))
    assert "stream_options" in first
    assert "stream_options" not in second
    assert third == fourth
    assert (third["max_completion_tokens"], "max_tokens" in third) == (5, False)


async def test_images_are_left_out_once_the_server_rejects_them(server: Server, llm: OpenAILLM) -> None:
    frame = ImageFrame(b"\xff\xd8", "image/jpeg", 1, 1)
    conversation = Conversation(items=[Item("user", (ImagePart(frame), TextPart("What is this?")))])
    server.on(CHAT, HELLO, answer({"error": {"message": "image input is not supported"}}, 400), HELLO)
    for _ in range(2):
        assert text_of(await ask(llm, conversation)) == "Hello."
    first, rejected, without = (request.json["messages"] for request in server.asked(CHAT))
    assert first == rejected
    assert first[0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,/9g="
    assert without == [{"role": "user", "content": "What is this?"}]


async def test_a_conversation_that_is_too_long_loses_its_oldest_turns(server: Server, llm: OpenAILLM) -> None:
    full = answer({"error": {"message": "the request exceeds the available context size"}}, 400)
    server.on(CHAT, full, full, HELLO, full)
    assert text_of(await ask(llm, conversation_of(*"abcdefgh"))) == "Hello."
    sent = [[message["content"] for message in request.json["messages"][1:]] for request in server.asked(CHAT)]
    assert sent == [[*"abcdefgh"], [*"defgh"], [*"gh"]]
    with pytest.raises(PermanentError, match="context size"):
        await ask(llm, conversation_of("a"))


# --- faults ---------------------------------------------------------------------------------------


async def test_three_more_attempts_before_the_first_chunk(server: Server, llm: OpenAILLM, pauses: list[float]) -> None:
    broken = answer({}, 500)
    server.on(CHAT, broken, answer({}, 503), sse(done=False, whole=False), HELLO)
    assert text_of(await ask(llm)) == "Hello."
    assert pauses == [1, 2, 4]
    server.on(CHAT, broken)
    with pytest.raises(TransientError, match=r"is in trouble \(500\)"):
        await ask(llm)
    assert len(server.asked(CHAT)) == 8


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
        (body(b"data: " + bytes(1 << 20), kind="text/event-stream"), "a line without end"),
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
    with pytest.raises(PermanentError, match=r"does not take the request .400.: context is too long"):
        await ask(llm)
    assert pauses == []


async def test_a_silent_server_times_out(server: Server, pauses: list[float]) -> None:
    async def silent(request: Request, reply: Reply) -> None:
        await reply.until_gone()

    server.on(CHAT, silent)
    llm = OpenAILLM(HttpService(f"{server.url}/v1", silence_s=0.05), "tiny")
    await llm.service.start()
    with pytest.raises(TransientError, match="said nothing for"):
        await ask(llm)
    assert pauses == [1, 2, 4]
    await llm.close()


async def test_sse_comments_do_not_extend_the_timeout(server: Server, pauses: list[float]) -> None:
    server.on(CHAT, trickle(b": still thinking\n\n", kind="text/event-stream"))
    llm = OpenAILLM(HttpService(f"{server.url}/v1", silence_s=0.1), "tiny")
    await llm.service.start()
    with pytest.raises(TransientError, match="said nothing for"):
        await ask(llm)
    assert len(server.asked(CHAT)) == 4
    await llm.close()


async def test_an_endless_error_body_is_cut(server: Server, llm: OpenAILLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echosight.engines.runtime.http_client.DETAIL_S", 0.1)
    server.on(CHAT, trickle(b"no ", status=400))
    with pytest.raises(PermanentError, match=r"does not take the request \(400\): no no"):
        await ask(llm)


async def test_attempts_end_at_the_deadline(
    server: Server, llm: OpenAILLM, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.runtime.retries.LATEST_S", 2.5)
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


async def test_closing_the_reply_closes_the_request(server: Server, llm: OpenAILLM) -> None:
    gone = asyncio.Event()

    async def endless(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="text/event-stream")
        await reply.write(b'data: {"choices":[{"delta":{"content":"and "}}]}\n\n')
        await reply.until_gone()
        gone.set()

    server.on(CHAT, endless)
    async with aclosing(llm.generate(conversation_of("Hi"), OPTIONS)) as chunks:
        assert await anext(chunks) == TextChunk("and ")
    await gone.wait()


# --- start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "model", "sentence"),
    [
        (
            answer({"error": {"message": "bad key"}}, 401),
            "tiny",
            "wants a key, or another one .401.: bad key; set OPENAI",
        ),
        (answer({}, 404), None, "name a model: --model http"),
        (answer({"data": []}), None, "lists no models; name one"),
        (answer([]), None, "it lists no models"),
        (body(b"<html>"), None, "no JSON"),
    ],
)
async def test_an_unusable_server_is_reported_at_start(
    server: Server, models: Any, model: str | None, sentence: str
) -> None:
    server.on("/v1/models", models)
    llm = OpenAILLM(HttpService(f"{server.url}/v1"), model)
    with pytest.raises(SetupError, match=sentence):
        await llm.start()
    await llm.close()


async def test_a_server_without_a_model_list_may_still_have_the_model(server: Server) -> None:
    server.on("/v1/models", answer({}, 404))
    llm = from_url(f"{server.url}/v1#mine", Settings(model=None))
    await llm.start()
    assert text_of(await ask(llm)) == "Hello."
    assert server.asked(CHAT)[0].json["model"] == "mine"
    await llm.close()


def test_keys_are_sent_to_their_own_service_only() -> None:
    settings = Settings(
        openai_api_key=SecretStr("o"),
        groq_api_key=SecretStr("g"),
        tts_api_key=SecretStr("t"),
        tts_api_url="http://voice:1/v1/audio/speech",
    )
    assert key_for("https://api.openai.com/v1", settings) == "o"
    assert key_for("https://api.groq.com/openai/v1", settings) == "g"
    assert key_for("http://voice:1/v1", settings) == "t"
    assert key_for("http://api.openai.com/v1", settings) is None
    assert key_for("https://elsewhere.example/v1", settings) is None


def test_hosted_llms_need_their_keys() -> None:
    for make, variable in ((openai, "OPENAI_API_KEY"), (groq, "GROQ_API_KEY")):
        with pytest.raises(SetupError, match=variable):
            make(None, Settings(openai_api_key=None, groq_api_key=None))
    with pytest.raises(SetupError, match="is no address"):
        from_url("http://", Settings())


async def test_the_key_is_sent(server: Server) -> None:
    settings = Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame"))
    llm = openai("tiny", settings)
    await llm.start()
    await ask(llm)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    await llm.close()


# --- prefill ----------------------------------------------------------------------------------------


async def test_the_prompt_is_prefilled_on_a_local_server(server: Server) -> None:
    reading, gone = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        reading.set()
        await reply.until_gone()
        gone.set()

    server.on(CHAT, answer({"choices": []}), slow, HELLO)
    llm = from_url(f"{server.url}/v1", Settings())
    await llm.start()
    conversation = conversation_of("Hi")
    conversation.pending_turn = UserTurn("t1")
    await llm.prefill(conversation, "")
    await asyncio.gather(*llm._prefills.values())
    await llm.prefill(conversation, "How are")
    await reading.wait()
    await llm.prefill(conversation, "How are you")
    assert text_of(await ask(llm, conversation)) == "Hello."
    await gone.wait()
    first, second, last = (request.json for request in server.asked(CHAT))
    assert (first["max_tokens"], "stream" in first) == (1, False)
    assert first["messages"] == last["messages"]
    assert second["messages"][:2] == first["messages"]
    await llm.close()


async def test_nothing_is_prefilled_on_a_server_with_a_key(server: Server) -> None:
    llm = openai("tiny", Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame")))
    await llm.start()
    await llm.prefill(conversation_of("Hi"), "How are")
    assert text_of(await ask(llm)) == "Hello."
    assert len(server.asked(CHAT)) == 1
    await llm.close()
