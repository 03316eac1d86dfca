"""The contract of `LLM`, for every implementation: add a line to `LLMS` for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult, UserTurn
from echosight.engines import LLM, GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.cascade.fallback import LLMChain
from echosight.engines.cascade_parts import LLMS as REGISTRY
from echosight.engines.llm.echo import EchoLLM
from echosight.errors import EngineFailure
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.contracts.harness import (
    UNKNOWN_LANGUAGE,
    Running,
    cancel_after_first,
    check_summary,
    count_forward_calls,
    no_task_left,
    read_first,
    red_image,
    require,
    started,
    until_stopped,
)
from tests.engines.llm.llama.programs import llama
from tests.engines.upstream import Reply, Request, answer, counted, finished, text, upstream
from tests.fakes import ScriptedLLM

Folder = Callable[[str], Path]
Case = AbstractAsyncContextManager[Running[LLM]]
LLMChunk = TextChunk | ToolCallChunk | GenerationSummary

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = GenerateOptions(max_output_tokens=12, temperature=0.0)
LONG = GenerateOptions(max_output_tokens=150, temperature=0.0)
FUNCTION = {"type": "function", "name": "weather", "description": "", "parameters": {"type": "object"}}


# --- implementations ------------------------------------------------------------------------------


@asynccontextmanager
async def plain(llm: LLM) -> AsyncIterator[Running[LLM]]:
    yield Running(llm)


@asynccontextmanager
async def transformers(folder: Path) -> AsyncIterator[Running[LLM]]:
    from echosight.engines.llm.transformers.chat import TransformersLLM, build_generator

    def build() -> Any:
        generator = build_generator(str(folder))
        # Random weights would end replies at any length.
        generator._stop_tokens = frozenset()
        return generator

    with count_forward_calls() as calls:
        yield Running(TransformersLLM("tiny", build, seed=1), calls, incremental=True)


def llama_cpp(kind: str, folder: Path) -> LLM:
    program, model = llama(kind, folder)
    return REGISTRY.create(f"llama:{model}", Settings(llama_exe_path=program, context_size=2048))


@asynccontextmanager
async def openai() -> AsyncIterator[Running[LLM]]:
    """A server whose reply repeats the user's last message, then counts up to the token limit."""
    chunks = 0

    async def reply_to(request: Request, reply: Reply) -> None:
        nonlocal chunks
        content = request.json["messages"][-1]["content"]
        if not request.json.get("stream"):
            await answer({"choices": []})(request, reply)
            return
        await reply.head(Content_Type="text/event-stream")
        limit = request.json.get("max_completion_tokens") or request.json.get("max_tokens") or 20
        words = [str(content), *(f" {n}" for n in range(1, limit))]
        for word in words:
            chunks += 1
            await sse_line(reply, text(word))
            await asyncio.sleep(0.002)
        await sse_line(reply, finished("length"))
        await sse_line(reply, counted(9, limit))
        await reply.write(b"data: [DONE]\n\n")
        await reply.end()

    async with upstream() as server:
        server.on("/v1/models", answer({"data": [{"id": "tiny"}]}))
        server.on("/v1/chat/completions", reply_to)
        settings = Settings(openai_api_base=f"{server.url}/v1")
        yield Running(REGISTRY.create("openai:tiny", settings), lambda: chunks, incremental=True)


async def sse_line(reply: Reply, event: Any) -> None:
    await reply.write(b"data: " + orjson.dumps(event) + b"\n\n")


@asynccontextmanager
async def scripted() -> AsyncIterator[Running[LLM]]:
    llm = ScriptedLLM(*(TextChunk(f" {n}") for n in range(100)))
    yield Running(llm, lambda: llm.steps, incremental=True)


LLMS: dict[str, Callable[[Folder], Case]] = {
    "echo": lambda _: plain(EchoLLM()),
    "transformers": lambda folder: transformers(folder("llama")),
    "transformers-vision": lambda folder: transformers(folder("qwen_vl")),
    "llama.cpp": lambda folder: plain(llama_cpp("real", folder("real"))),
    "llama.cpp-stand-in": lambda folder: plain(llama_cpp("stand-in", folder("stand-in"))),
    "openai": lambda _: openai(),
    "chain": lambda _: plain(LLMChain([ScriptedLLM(name="broken", fails="at the first chunk"), EchoLLM()])),
    "scripted": lambda _: scripted(),
}

NEEDS_START = [kind for kind in LLMS if kind not in ("echo", "chain", "scripted")]
WITHOUT_LIMIT = ("scripted", "llama.cpp-stand-in")
"""They ignore `max_output_tokens`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    def write(kind: str) -> Path:
        path = tmp_path_factory.mktemp("model")
        if kind not in ("llama", "qwen_vl"):
            return path
        require("torch", "transformers")
        from tests.engines import tiny_local

        written: Path = getattr(tiny_local, f"write_{kind}")(path)
        return written

    return write


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LLMS)
async def case(request: pytest.FixtureRequest, folder: Folder) -> AsyncIterator[Running[LLM]]:
    async with LLMS[request.param](folder) as running, started(running):
        yield running


@pytest.fixture(scope="module")
def llm(case: Running[LLM]) -> LLM:
    return case.part


# --- helpers --------------------------------------------------------------------------------------


def user(text: str) -> Item:
    return Item("user", (TextPart(text),))


def conversation_of(*items: Item, **kwargs: Any) -> Conversation:
    return Conversation(instructions="Answer in one sentence.", items=list(items), **kwargs)


def hello() -> Conversation:
    return conversation_of(user("hello, how are you today?"))


async def generate(llm: LLM, conversation: Conversation, options: GenerateOptions = SHORT) -> list[LLMChunk]:
    async with aclosing(llm.generate(conversation, options)) as reply:
        chunks = [chunk async for chunk in reply]
    for chunk in chunks[:-1]:
        match chunk:
            case TextChunk(delta):
                assert isinstance(delta, str)
            case ToolCallChunk(call_id, name, arguments):
                assert call_id and name
                assert isinstance(arguments, str)
            case _:
                pytest.fail(f"a reply contained {chunk}")
    check_summary(chunks)
    return chunks


def text_of(chunks: Sequence[LLMChunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


# --- the contract ---------------------------------------------------------------------------------


async def test_a_conversation_becomes_text_and_a_summary(llm: LLM) -> None:
    assert text_of(await generate(llm, hello())).strip()
    assert isinstance(llm.name, str) and llm.name


async def test_the_conversation_is_not_changed(llm: LLM) -> None:
    conversation = hello()
    before = conversation.to_json()
    await llm.prefill(conversation, "")
    await generate(llm, conversation)
    assert conversation.to_json() == before


async def test_the_token_limit_ends_the_reply(request: pytest.FixtureRequest, llm: LLM) -> None:
    chunks = await generate(llm, hello(), replace(SHORT, max_output_tokens=2))
    if request.node.callspec.params["case"] not in WITHOUT_LIMIT:
        assert check_summary(chunks).finish == "length"
        assert len(chunks) <= 3


@pytest.mark.parametrize(
    "items",
    [
        (),
        (user(""),),
        (Item("user", ()),),
        (Item("user", (AudioPart(None, 16_000, 500, "what is this?"),)),),
        (Item("user", (AudioPart(bytes(32_000), 16_000, 1000),)),),
        (Item("user", (TextPart("what is this?"), ImagePart(red_image()))),),
        (user("Grüße, 你好 😀!\0"), Item("assistant", (TextPart("Hm."),)), user("and now?")),
        (user("one"), user("two"), Item("system", (TextPart("Be brief."),)), user("three")),
        (Item("assistant", (TextPart("Hello!"),)),),
        (
            user("what is the weather?"),
            Item("assistant", (ToolCall("call_1", "weather", "{}"),)),
            Item("tool", (ToolResult("call_1", "sunny"),)),
        ),
    ],
)
async def test_any_conversation_is_fine(llm: LLM, items: tuple[Item, ...]) -> None:
    await generate(llm, conversation_of(*items))


@pytest.mark.parametrize("language", [None, "", "en-US", UNKNOWN_LANGUAGE])
async def test_no_language_and_an_unknown_one_are_fine(llm: LLM, language: str | None) -> None:
    conversation = conversation_of(user("hello"), language=language)
    await llm.prefill(conversation, "")
    assert text_of(await generate(llm, conversation, replace(SHORT, language=language)))


@pytest.mark.parametrize("choice", ["auto", "none"])
async def test_functions_may_be_offered(llm: LLM, choice: str) -> None:
    await generate(llm, hello(), replace(SHORT, tools=(FUNCTION,), tool_choice=choice))


async def test_instructions_may_be_replaced_for_one_reply(llm: LLM) -> None:
    for instructions in ("", "Be rude."):
        assert text_of(await generate(llm, hello(), replace(SHORT, instructions=instructions)))


async def test_partial_transcripts_may_be_prefilled_while_the_user_speaks(llm: LLM) -> None:
    conversation = conversation_of(user("hello"), Item("assistant", (TextPart("Hi."),)))
    turn = conversation.pending_turn = UserTurn()
    turn.add(AudioPart(bytes(32_000), 16_000, 1000))
    for partial in ("", "how", "how are", "how are", "what are you", ""):
        await llm.prefill(conversation, partial)
    conversation.add(turn.to_item("what are you doing today?"))
    conversation.pending_turn = None
    prefilled = text_of(await generate(llm, conversation))
    plain = replace(conversation, id="another")
    if (text := text_of(await generate(llm, plain))) == text_of(await generate(llm, replace(plain, id="a third"))):
        assert prefilled == text
    await llm.release(conversation.id)


async def test_a_prefill_may_be_cancelled(llm: LLM) -> None:
    conversation = hello()
    for passes in range(3):
        prefill = asyncio.create_task(llm.prefill(conversation, "how are you"))
        for _ in range(passes):
            await asyncio.sleep(0)
        prefill.cancel()
        await asyncio.wait([prefill])
    assert text_of(await generate(llm, conversation))


async def test_unknown_conversations_may_be_released_and_known_ones_twice(llm: LLM) -> None:
    await llm.release("unknown")
    conversation = hello()
    before = text_of(await generate(llm, conversation))
    again = text_of(await generate(llm, conversation))
    for _ in range(2):
        await llm.release(conversation.id)
    after = text_of(await generate(llm, conversation))
    if before == again:
        assert after == before


async def test_closing_the_generator_stops_the_model(case: Running[LLM]) -> None:
    began = case.steps()
    await generate(case.part, hello(), LONG)
    all_steps = await until_stopped(case.steps) - began
    async with no_task_left():
        began = case.steps()
        await read_first(case.part.generate(hello(), LONG))
        steps = await until_stopped(case.steps) - began
    if case.incremental:
        assert steps < all_steps / 2
    assert text_of(await generate(case.part, hello()))


async def test_a_cancelled_reader_leaves_nothing_behind(llm: LLM) -> None:
    conversation = hello()
    async with no_task_left():
        await cancel_after_first(llm.generate(conversation, LONG))
    assert text_of(await generate(llm, conversation))


async def test_a_generator_that_was_never_read_may_be_closed(llm: LLM) -> None:
    async with no_task_left():
        await llm.generate(hello(), SHORT).aclose()


async def test_replies_at_the_same_time_do_not_mix(llm: LLM) -> None:
    conversations = hello(), conversation_of(user("what do you see in this room?"))
    alone = [text_of(await generate(llm, conversation)) for conversation in conversations]
    together = await asyncio.gather(*(generate(llm, conversation) for conversation in conversations))
    assert [text_of(chunks) for chunks in together] == alone


async def test_a_slow_reader_does_not_hold_back_another(llm: LLM) -> None:
    slow = llm.generate(hello(), LONG)
    async with aclosing(slow), asyncio.timeout(20):
        await anext(slow)
        assert text_of(await generate(llm, conversation_of(user("hello"))))


@pytest.mark.parametrize("kind", LLMS)
async def test_it_starts_and_closes_twice_and_closes_without_a_start(kind: str, folder: Folder) -> None:
    async with LLMS[kind](folder) as running:
        llm = running.part
        await llm.close()
        for _ in range(2):
            await llm.start()
            assert text_of(await generate(llm, hello()))
            await llm.close()
            await llm.close()


@pytest.mark.parametrize("kind", NEEDS_START)
async def test_without_a_start_it_fails_and_does_not_hang(kind: str, folder: Folder) -> None:
    async with LLMS[kind](folder) as running:
        async with asyncio.timeout(20):
            with pytest.raises(EngineFailure):
                await generate(running.part, hello())
