"""The contract of `LLM`, for every implementation: see `tests/contracts/llms.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult, UserTurn
from echosight.engines import LLM, GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import EngineFailure
from echosight.options import GenerateOptions
from tests.contracts.harness import (
    UNKNOWN_LANGUAGE,
    Folder,
    Running,
    cancel_after_first,
    check_summary,
    no_task_left,
    read_first,
    red_image,
    require,
    started,
    until_stopped,
)
from tests.contracts.llms import LLMS, NEEDS_START, WITHOUT_LIMIT

LLMChunk = TextChunk | ToolCallChunk | GenerationSummary

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = GenerateOptions(max_output_tokens=12, temperature=0.0)
LONG = GenerateOptions(max_output_tokens=150, temperature=0.0)
FUNCTION = {"type": "function", "name": "weather", "description": "", "parameters": {"type": "object"}}


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
