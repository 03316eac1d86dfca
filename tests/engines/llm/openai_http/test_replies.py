"""Requests to an OpenAI-compatible server, and its replies."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from echosight.conversation import Conversation, ImagePart, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.openai_http import OpenAILLM, from_url, openai
from echosight.engines.runtime.http_client import PermanentError
from echosight.errors import CannotSee
from echosight.events import Usage
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.llm.openai_http.rig import CHAT, HELLO, OPTIONS, ask, conversation_of, text_of
from tests.engines.upstream import Reply, Request, Server, answer, body, finished, sse, text


async def test_text_is_streamed_and_tokens_are_counted(server: Server, llm: OpenAILLM) -> None:
    chunks = await ask(llm, options=GenerateOptions(temperature=0.5, max_output_tokens=9))
    assert chunks == [
        TextChunk("Hel"),
        TextChunk("lo."),
        GenerationSummary(Usage(input_text=7, cached=5, output_text=2), "stop"),
    ]
    payload = server.requests_to(CHAT)[0].json
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
    payload = server.requests_to(CHAT)[0].json
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
    first, second, third, fourth = (request.json for request in server.requests_to(CHAT))
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
    first, rejected, without = (request.json["messages"] for request in server.requests_to(CHAT))
    assert first == rejected
    assert first[0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,/9g="
    assert without == [{"role": "user", "content": "What is this?"}]


async def test_images_that_must_be_seen_are_not_left_out(server: Server, llm: OpenAILLM) -> None:
    frame = ImageFrame(b"\xff\xd8", "image/jpeg", 1, 1)
    conversation = Conversation(items=[Item("user", (ImagePart(frame),))])
    server.on(CHAT, answer({"error": {"message": "image input is not supported"}}, 400), HELLO)
    for _ in range(2):
        with pytest.raises(CannotSee, match="takes no images"):
            await ask(llm, conversation, GenerateOptions(require_images=True))
    assert len(server.requests_to(CHAT)) == 1


async def test_json_is_asked_for_in_the_strictest_form_that_the_server_takes(server: Server, llm: OpenAILLM) -> None:
    server.on(
        CHAT,
        answer({"error": {"message": "This model does not support response format `json_schema`"}}, 400),
        answer({"error": {"message": "response_format is not supported"}}, 400),
        HELLO,
    )
    schema = {"type": "object"}
    options = GenerateOptions(reply_schema=schema)
    assert text_of(await ask(llm, options=options)) == text_of(await ask(llm, options=options)) == "Hello."
    forms = [request.json.get("response_format") for request in server.requests_to(CHAT)]
    strict = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    assert forms == [strict, {"type": "json_object"}, None, None]


async def test_a_conversation_that_is_too_long_loses_its_oldest_turns(server: Server, llm: OpenAILLM) -> None:
    full = answer({"error": {"message": "the request exceeds the available context size"}}, 400)
    server.on(CHAT, full, full, HELLO, full)
    assert text_of(await ask(llm, conversation_of(*"abcdefgh"))) == "Hello."
    sent = [[message["content"] for message in request.json["messages"][1:]] for request in server.requests_to(CHAT)]
    assert sent == [[*"abcdefgh"], [*"defgh"], [*"gh"]]
    with pytest.raises(PermanentError, match="context size"):
        await ask(llm, conversation_of("a"))


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
    first, second, last = (request.json for request in server.requests_to(CHAT))
    assert (first["max_tokens"], "stream" in first) == (1, False)
    assert first["messages"] == last["messages"]
    assert second["messages"][:2] == first["messages"]
    await llm.close()


async def test_nothing_is_prefilled_on_a_server_with_a_key(server: Server) -> None:
    llm = openai("tiny", Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame")))
    await llm.start()
    await llm.prefill(conversation_of("Hi"), "How are")
    assert text_of(await ask(llm)) == "Hello."
    assert len(server.requests_to(CHAT)) == 1
    await llm.close()
