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
from echosight.engines.llm.openai_http import OpenAILLM, at, groq, openai
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
async def chat(server: Server) -> AsyncIterator[OpenAILLM]:
    made = OpenAILLM(HttpService(f"{server.url}/v1"), None)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without their time."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return made


def talk(*said: str) -> Conversation:
    return Conversation(instructions="Be brief.", items=[Item("user", (TextPart(one),)) for one in said])


async def ask(
    chat: OpenAILLM, conversation: Conversation | None = None, options: GenerateOptions = OPTIONS
) -> list[TextChunk | ToolCallChunk | GenerationSummary]:
    return [piece async for piece in chat.generate(conversation or talk("Hi"), options)]


def said(pieces: list[Any]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))


# --- what is asked, and what comes ----------------------------------------------------------------


async def test_text_comes_as_it_is_made_and_tokens_are_counted(server: Server, chat: OpenAILLM) -> None:
    pieces = await ask(chat, options=GenerateOptions(temperature=0.5, max_output_tokens=9))
    assert pieces == [
        TextChunk("Hel"),
        TextChunk("lo."),
        GenerationSummary(Usage(input_text=7, cached=5, output_text=2), "stop"),
    ]
    asked = server.asked(CHAT)[0].json
    assert asked == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }
    assert chat.name == f"tiny at 127.0.0.1:{server.port}"


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
    ids=["no-done", "done-only", "length", "filter", "tools", "cut-when-complete", "odd-pieces"],
)  # fmt: skip
async def test_all_ways_to_end_are_understood(server: Server, chat: OpenAILLM, script: Any, finish: str) -> None:
    server.on(CHAT, script)
    assert await ask(chat) == [TextChunk("Hello."), GenerationSummary(finish=finish)]


async def test_text_may_hold_what_ends_a_line_elsewhere(server: Server, chat: OpenAILLM) -> None:
    talked = "one\u2028two\x85three"
    event = json.dumps({"choices": [text(talked)["choices"][0] | {"finish_reason": "stop"}]}, ensure_ascii=False)
    cut = [bytes([byte]) for byte in f"data: {event}\r\n\r\n".encode()]
    server.on(CHAT, body(*cut, kind="text/event-stream"))
    assert said(await ask(chat)) == talked


async def test_a_count_that_is_none_spoils_no_answer(server: Server, chat: OpenAILLM) -> None:
    for count in ({"usage": 3}, {"usage": {"prompt_tokens_details": 3}}, ["usage"]):
        server.on(CHAT, sse(text("Hello."), finished(), count))
        assert said(await ask(chat)) == "Hello."


async def test_a_server_that_does_not_close_is_not_waited_for(server: Server, chat: OpenAILLM) -> None:
    closed = asyncio.Event()

    async def open_ended(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="text/event-stream")
        await reply.write(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n')
        await reply.until_gone()
        closed.set()

    server.on(CHAT, open_ended)
    assert await ask(chat) == [TextChunk("Hi"), GenerationSummary()]
    await closed.wait()


async def test_functions_are_called(server: Server, chat: OpenAILLM) -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": more["name"]} if "name" in more else {})}
        known = {"id": more["id"]} if "id" in more else {}
        return {"choices": [{"delta": {"tool_calls": [{"index": index, **known, "function": function}]}}]}

    server.on(
        CHAT,
        sse(call(0, "", id="a", name="weather"), call(0, '{"in":'), call(0, '"Rome"}'),
            call(1, "{}", id="b", name="time"), finished("tool_calls")),
    )  # fmt: skip
    tool = {"type": "function", "name": "weather", "description": "?", "parameters": {"type": "object"}}
    choice = {"type": "function", "name": "weather"}
    pieces = await ask(chat, options=GenerateOptions(tools=(tool,), tool_choice=choice))
    assert pieces[:-1] == [
        ToolCallChunk("a", "weather", ""),
        ToolCallChunk("a", "weather", '{"in":'),
        ToolCallChunk("a", "weather", '"Rome"}'),
        ToolCallChunk("b", "time", "{}"),
    ]
    asked = server.asked(CHAT)[0].json
    function = {key: value for key, value in tool.items() if key != "type"}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_what_a_server_does_not_know_is_left_out_from_then_on(server: Server, chat: OpenAILLM) -> None:
    server.on(
        CHAT,
        answer({"detail": "Unexpected fields: {'stream_options'}"}, 422),
        answer({"error": {"message": "'max_tokens' is not supported with this model"}}, 400),
        HELLO,
    )
    options = GenerateOptions(max_output_tokens=5)
    assert said(await ask(chat, options=options)) == said(await ask(chat, options=options)) == "Hello."
    first, second, third, fourth = (request.json for request in server.asked(CHAT))
    assert "stream_options" in first
    assert "stream_options" not in second
    assert third == fourth
    assert (third["max_completion_tokens"], "max_tokens" in third) == (5, False)


async def test_pictures_are_shown_unless_the_model_is_blind(server: Server, chat: OpenAILLM) -> None:
    frame = ImageFrame(b"\xff\xd8", "image/jpeg", 1, 1)
    conversation = Conversation(items=[Item("user", (ImagePart(frame), TextPart("What is this?")))])
    server.on(CHAT, HELLO, answer({"error": {"message": "image input is not supported"}}, 400), HELLO)
    for _ in range(2):
        assert said(await ask(chat, conversation)) == "Hello."
    shown, refused, blind = (request.json["messages"] for request in server.asked(CHAT))
    assert shown == refused
    assert shown[0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,/9g="
    assert blind == [{"role": "user", "content": "What is this?"}]


async def test_a_conversation_that_is_too_long_loses_its_oldest_turns(server: Server, chat: OpenAILLM) -> None:
    full = answer({"error": {"message": "the request exceeds the available context size"}}, 400)
    server.on(CHAT, full, full, HELLO, full)
    assert said(await ask(chat, talk(*"abcdefgh"))) == "Hello."
    shown = [[message["content"] for message in request.json["messages"][1:]] for request in server.asked(CHAT)]
    assert shown == [[*"abcdefgh"], [*"defgh"], [*"gh"]]
    with pytest.raises(PermanentError, match="context size"):
        await ask(chat, talk("a"))


# --- faults ---------------------------------------------------------------------------------------


async def test_three_more_attempts_before_the_first_piece(server: Server, chat: OpenAILLM, pauses: list[float]) -> None:
    broken = answer({}, 500)
    server.on(CHAT, broken, answer({}, 503), sse(done=False, whole=False), HELLO)
    assert said(await ask(chat)) == "Hello."
    assert pauses == [1, 2, 4]
    server.on(CHAT, broken)
    with pytest.raises(TransientError, match=r"service unavailable \(500\)"):
        await ask(chat)
    assert len(server.asked(CHAT)) == 8


@pytest.mark.parametrize(
    ("wish", "pause"),
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
async def test_too_many_requests_wait_as_long_as_is_asked(
    server: Server, chat: OpenAILLM, pauses: list[float], wish: str, pause: float
) -> None:
    server.on(CHAT, answer({}, 429, retry_after=wish), HELLO)
    assert said(await ask(chat)) == "Hello."
    assert pauses == [pause]


async def test_nobody_waits_a_minute(server: Server, chat: OpenAILLM, pauses: list[float]) -> None:
    server.on(CHAT, answer({}, 429, retry_after="60"), HELLO)
    with pytest.raises(TransientError, match=r"too many requests \(429\)"):
        await ask(chat)
    assert pauses == []


async def test_what_breaks_off_in_the_middle_is_not_said_again(
    server: Server, chat: OpenAILLM, pauses: list[float]
) -> None:
    for cut in (sse(text("Hel"), done=False, whole=False), sse(text("Hel"), done=False, whole=True)):
        server.on(CHAT, cut)
        heard: list[Any] = []
        with pytest.raises(TransientError, match="broke off"):
            async for piece in chat.generate(talk("Hi"), OPTIONS):
                heard.append(piece)
        assert heard == [TextChunk("Hel")]
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
async def test_garbage_is_no_answer(server: Server, chat: OpenAILLM, script: Any, message: str) -> None:
    server.on(CHAT, script)
    with pytest.raises(EngineFailure, match=message):
        await ask(chat)


async def test_what_is_no_http_is_tried_again_in_vain(server: Server, chat: OpenAILLM, pauses: list[float]) -> None:
    server.on(CHAT, raw(b"SSH-2.0-OpenSSH_9.2\r\n"))
    with pytest.raises(TransientError, match="broke off"):
        await ask(chat)
    assert len(pauses) == 3


async def test_mistakes_are_not_tried_again(server: Server, chat: OpenAILLM, pauses: list[float]) -> None:
    server.on(CHAT, answer({"error": {"message": "context\nis too long"}}, 400))
    with pytest.raises(PermanentError, match=r"bad request .400.: context is too long"):
        await ask(chat)
    assert pauses == []


async def test_silence_ends(server: Server, pauses: list[float]) -> None:
    async def silent(request: Request, reply: Reply) -> None:
        await reply.until_gone()

    server.on(CHAT, silent)
    chat = OpenAILLM(HttpService(f"{server.url}/v1", read_timeout_s=0.05), "tiny")
    await chat.upstream.start()
    with pytest.raises(TransientError, match="sent nothing for"):
        await ask(chat)
    assert pauses == [1, 2, 4]
    await chat.close()


async def test_comments_are_silence(server: Server, pauses: list[float]) -> None:
    server.on(CHAT, trickle(b": still thinking\n\n", kind="text/event-stream"))
    chat = OpenAILLM(HttpService(f"{server.url}/v1", read_timeout_s=0.1), "tiny")
    await chat.upstream.start()
    with pytest.raises(TransientError, match="sent nothing for"):
        await ask(chat)
    assert len(server.asked(CHAT)) == 4
    await chat.close()


async def test_reasons_without_end_are_not_read(
    server: Server, chat: OpenAILLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.runtime.http_client.DETAIL_TIMEOUT_S", 0.1)
    server.on(CHAT, trickle(b"no ", status=400))
    with pytest.raises(PermanentError, match=r"bad request \(400\): no no"):
        await ask(chat)


async def test_who_takes_too_long_is_not_asked_again(
    server: Server, chat: OpenAILLM, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.runtime.retries.RETRY_DEADLINE_S", 2.5)
    server.on(CHAT, answer({}, 500))
    with pytest.raises(TransientError):
        await ask(chat)
    assert pauses == [1, 2]


async def test_nobody_there(pauses: list[float]) -> None:
    async with upstream() as gone:
        chat = OpenAILLM(HttpService(f"{gone.url}/v1"), "tiny")
    await chat.upstream.start()
    with pytest.raises(TransientError, match="cannot be reached"):
        await ask(chat)
    assert pauses == [1, 2, 4]
    with pytest.raises(SetupError, match=r"No chat at http.*cannot be reached"):
        await chat.start()
    await chat.close()


async def test_closing_the_answer_closes_the_request(server: Server, chat: OpenAILLM) -> None:
    gone = asyncio.Event()

    async def endless(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="text/event-stream")
        await reply.write(b'data: {"choices":[{"delta":{"content":"and "}}]}\n\n')
        await reply.until_gone()
        gone.set()

    server.on(CHAT, endless)
    async with aclosing(chat.generate(talk("Hi"), OPTIONS)) as pieces:
        assert await anext(pieces) == TextChunk("and ")
    await gone.wait()


# --- start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "model", "sentence"),
    [
        (
            answer({"error": {"message": "bad key"}}, 401),
            "tiny",
            "authentication failed; check the API key .401.: bad key; set OPENAI",
        ),
        (answer({}, 404), None, "name a model: --model http"),
        (answer({"data": []}), None, "lists no models; name one"),
        (answer([]), None, "it lists no models"),
        (body(b"<html>"), None, "not JSON"),
    ],
)
async def test_what_cannot_answer_is_told_at_start(
    server: Server, models: Any, model: str | None, sentence: str
) -> None:
    server.on("/v1/models", models)
    chat = OpenAILLM(HttpService(f"{server.url}/v1"), model)
    with pytest.raises(SetupError, match=sentence):
        await chat.start()
    await chat.close()


async def test_a_server_that_lists_nothing_may_have_the_model(server: Server) -> None:
    server.on("/v1/models", answer({}, 404))
    chat = at(f"{server.url}/v1#mine", Settings(model=None))
    await chat.start()
    assert said(await ask(chat)) == "Hello."
    assert server.asked(CHAT)[0].json["model"] == "mine"
    await chat.close()


def test_keys_go_where_they_belong() -> None:
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


def test_hosted_chats_need_their_keys() -> None:
    for make, variable in ((openai, "OPENAI_API_KEY"), (groq, "GROQ_API_KEY")):
        with pytest.raises(SetupError, match=variable):
            make(None, Settings(openai_api_key=None, groq_api_key=None))
    with pytest.raises(SetupError, match="is no address"):
        at("http://", Settings())


async def test_the_key_is_sent(server: Server) -> None:
    settings = Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame"))
    chat = openai("tiny", settings)
    await chat.start()
    await ask(chat)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    await chat.close()


# --- ahead ----------------------------------------------------------------------------------------


async def test_the_prompt_is_sent_ahead_to_a_server_of_ones_own(server: Server) -> None:
    reading, gone = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        reading.set()
        await reply.until_gone()
        gone.set()

    server.on(CHAT, answer({"choices": []}), slow, HELLO)
    chat = at(f"{server.url}/v1", Settings())
    await chat.start()
    conversation = talk("Hi")
    conversation.pending_turn = UserTurn("t1")
    await chat.prefill(conversation, "")
    await asyncio.gather(*chat._prefills.values())
    await chat.prefill(conversation, "How are")
    await reading.wait()
    await chat.prefill(conversation, "How are you")
    assert said(await ask(chat, conversation)) == "Hello."
    await gone.wait()
    first, second, last = (request.json for request in server.asked(CHAT))
    assert (first["max_tokens"], "stream" in first) == (1, False)
    assert first["messages"] == last["messages"]
    assert second["messages"][:2] == first["messages"]
    await chat.close()


async def test_nothing_is_sent_ahead_to_who_sends_bills(server: Server) -> None:
    chat = openai("tiny", Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame")))
    await chat.start()
    await chat.prefill(talk("Hi"), "How are")
    assert said(await ask(chat)) == "Hello."
    assert len(server.asked(CHAT)) == 1
    await chat.close()
