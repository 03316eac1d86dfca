"""The contract of `Engine`, for every implementation: see `tests/contracts/engines.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, Part, TextPart, UserTurn, pcm_part
from echosight.engines import Chunk, Engine, SpeechChunk, TextChunk
from echosight.media import Transcript, pcm_ms
from echosight.options import GenerateOptions
from tests.conftest import Flite
from tests.contracts.engines import ENGINES
from tests.contracts.harness import (
    UNKNOWN_LANGUAGE,
    Folder,
    Running,
    cancel_after_first,
    check_summary,
    check_words,
    no_task_left,
    read_first,
    red_image,
    require,
    started,
    until_stopped,
)
from tests.fakes import ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    def write(kind: str) -> Path:
        require("torch", "transformers")
        from tests.engines.omni import tiny

        path = tmp_path_factory.mktemp("omni")
        return tiny.write_qwen3(path) if kind == "qwen3" else tiny.write_qwen2_5(path)

    return write


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def case(request: pytest.FixtureRequest, folder: Folder) -> AsyncIterator[Running[Engine]]:
    async with ENGINES[request.param](folder) as running, started(running):
        yield running


@pytest.fixture(scope="module")
def engine(case: Running[Engine]) -> Engine:
    return case.part


@pytest.fixture(scope="module")
def hello(flite: Flite) -> bytes:
    return flite("hello how are you today").pcm


# --- helpers --------------------------------------------------------------------------------------


async def hear(engine: Engine, conversation: Conversation, *parts: Part) -> UserTurn:
    """A turn of these parts, in chunks of 200 ms; it is over and transcribed afterwards."""
    turn = conversation.pending_turn = UserTurn()
    for part in parts:
        chunks = [part]
        if isinstance(part, AudioPart) and part.pcm:
            chunks = [pcm_part(part.pcm[start : start + 6400]) for start in range(0, len(part.pcm), 6400)]
        for chunk in chunks:
            partial = await engine.prefill(conversation, turn.add(chunk))
            assert partial is None or isinstance(partial, str)
    check_transcript(await engine.finalize_transcript(conversation, turn), turn)
    conversation.add(turn.to_item("hello how are you today" if turn.duration_ms else None))
    conversation.pending_turn = None
    return turn


def check_transcript(transcript: Transcript | None, turn: UserTurn) -> None:
    if transcript is not None:
        assert transcript.final
        check_words(transcript.words, transcript.text, turn.duration_ms)


async def reply(
    case: Running[Engine], conversation: Conversation, options: GenerateOptions | None = None
) -> list[Chunk]:
    async with aclosing(case.part.generate(conversation, options or case.options)) as chunks:
        collected = [chunk async for chunk in chunks]
    summary = check_summary(collected)
    assert all(isinstance(name, str) and name for name in summary.providers) and summary.providers
    speech = [chunk for chunk in collected if isinstance(chunk, SpeechChunk)]
    assert all(len(chunk.pcm) % 2 == 0 for chunk in speech)
    duration_ms = pcm_ms(sum(len(chunk.pcm) for chunk in speech), case.part.output_rate)
    check_words([word for chunk in speech for word in chunk.words], text_of(collected), duration_ms)
    return collected


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


def pcm_of(chunks: Sequence[Chunk]) -> bytes:
    return b"".join(chunk.pcm for chunk in chunks if isinstance(chunk, SpeechChunk))


# --- the contract ---------------------------------------------------------------------------------


async def test_speech_gets_a_reply_in_text_and_speech(case: Running[Engine], hello: bytes) -> None:
    conversation = Conversation(instructions="Be kind.")
    for _ in range(2):
        await hear(case.part, conversation, pcm_part(hello))
        chunks = await reply(case, conversation)
        assert text_of(chunks).strip() and pcm_of(chunks)
        conversation.add(Item("assistant", (AudioPart(None, 24_000, 0, text_of(chunks)),)))
    await case.part.release(conversation.id)


async def test_name_capacity_rate_and_voices_are_known(engine: Engine) -> None:
    assert isinstance(engine.name, str) and engine.name
    assert engine.capacity >= 1
    assert 1000 <= engine.output_rate <= 192_000
    assert all(isinstance(voice, str) for voice in engine.voices)


async def test_without_speech_the_reply_is_text(case: Running[Engine], hello: bytes) -> None:
    conversation = Conversation()
    await hear(case.part, conversation, pcm_part(hello))
    chunks = await reply(case, conversation, replace(case.options, speech=False))
    assert not pcm_of(chunks)
    assert text_of(chunks)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (TextPart("hello"),),
        (TextPart(""),),
        (ImagePart(red_image()), TextPart("what is this?")),
        (pcm_part(b""),),
        (pcm_part(b"\x01\x00"),),
        (pcm_part(bytes(32_000)), ImagePart(red_image()), pcm_part(bytes(6402)), TextPart("and this?")),
    ],
)
async def test_any_turn_is_fine(case: Running[Engine], parts: tuple[Part, ...]) -> None:
    conversation = Conversation()
    await hear(case.part, conversation, *parts)
    await reply(case, conversation)
    await case.part.release(conversation.id)


async def test_the_conversation_is_not_changed(case: Running[Engine]) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    before = conversation.to_json()
    await reply(case, conversation)
    assert conversation.to_json() == before


async def test_prefilling_without_a_pending_turn_does_nothing(engine: Engine, case: Running[Engine]) -> None:
    if not isinstance(engine, ScriptedEngine):
        assert await engine.prefill(Conversation(), pcm_part(bytes(6400))) is None


async def test_an_early_transcript_is_void_when_more_follows(engine: Engine, hello: bytes) -> None:
    conversation = Conversation()
    turn = conversation.pending_turn = UserTurn()
    await engine.prefill(conversation, turn.add(pcm_part(hello)))
    early = [await engine.finalize_transcript(conversation, turn) for _ in range(2)]
    if not isinstance(engine, ScriptedEngine):
        assert early[0] == early[1]
    await engine.prefill(conversation, turn.add(pcm_part(hello)))
    late = await engine.finalize_transcript(conversation, turn)
    assert (late is None) == (early[0] is None)
    check_transcript(late, turn)
    await engine.release(conversation.id)


async def test_speech_that_was_not_prefilled_is_transcribed(engine: Engine, hello: bytes) -> None:
    turn = UserTurn()
    turn.add(pcm_part(hello))
    conversation = Conversation()
    transcript = await engine.finalize_transcript(conversation, turn)
    assert transcript is None or transcript.text
    check_transcript(transcript, turn)
    await engine.release(conversation.id)


async def test_a_prefill_may_be_cancelled(case: Running[Engine], hello: bytes) -> None:
    conversation = Conversation()
    turn = conversation.pending_turn = UserTurn()
    for passes in range(4):
        prefill = asyncio.create_task(case.part.prefill(conversation, turn.add(pcm_part(hello))))
        for _ in range(passes):
            await asyncio.sleep(0)
        prefill.cancel()
        await asyncio.wait([prefill])
    check_transcript(await case.part.finalize_transcript(conversation, turn), turn)
    conversation.add(turn.to_item("hello"))
    conversation.pending_turn = None
    assert text_of(await reply(case, conversation))
    await case.part.release(conversation.id)


@pytest.mark.parametrize("language", [None, "", "en-US", UNKNOWN_LANGUAGE])
async def test_no_language_and_an_unknown_one_are_fine(case: Running[Engine], language: str | None) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))], language=language)
    assert text_of(await reply(case, conversation, replace(case.options, language=language, voice="no such voice")))


async def test_edited_and_removed_items_are_fine(case: Running[Engine], hello: bytes) -> None:
    conversation = Conversation()
    await hear(case.part, conversation, pcm_part(hello))
    conversation.add(answer := Item("assistant", (TextPart(text_of(await reply(case, conversation)).strip() or "-"),)))
    conversation.update(replace(answer, parts=(TextPart("Certainly"),)))
    await hear(case.part, conversation, TextPart("go on"))
    assert text_of(await reply(case, conversation))
    conversation.remove(conversation.items[0].id)
    assert text_of(await reply(case, conversation))


async def test_unknown_conversations_may_be_released_and_known_ones_twice(case: Running[Engine], hello: bytes) -> None:
    await case.part.release("unknown")
    conversation = Conversation()
    await hear(case.part, conversation, pcm_part(hello))
    for _ in range(2):
        await case.part.release(conversation.id)
        assert text_of(await reply(case, conversation))
        await case.part.release(conversation.id)


async def test_closing_the_generator_stops_the_model(case: Running[Engine]) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    await reply(case, conversation)
    began = await until_stopped(case.steps)
    await reply(case, conversation)
    all_steps = await until_stopped(case.steps) - began
    async with no_task_left():
        began = case.steps()
        await read_first(case.part.generate(conversation, case.options))
        steps = await until_stopped(case.steps) - began
    if case.incremental:
        assert steps < all_steps / 2
    assert text_of(await reply(case, conversation))


async def test_closing_the_generator_in_the_middle_of_speech_stops_the_model(case: Running[Engine]) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    async with no_task_left():
        await read_first(case.part.generate(conversation, case.options), lambda chunk: isinstance(chunk, SpeechChunk))
        await until_stopped(case.steps)
    assert pcm_of(await reply(case, conversation))


async def test_a_cancelled_reader_leaves_nothing_behind(case: Running[Engine]) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    async with no_task_left():
        await cancel_after_first(case.part.generate(conversation, case.options))
    assert text_of(await reply(case, conversation))


async def test_a_generator_that_was_never_read_may_be_closed(case: Running[Engine]) -> None:
    async with no_task_left():
        await case.part.generate(Conversation(), case.options).aclose()


async def test_conversations_at_the_same_time_do_not_mix(case: Running[Engine]) -> None:
    conversations = [Conversation(items=[Item("user", (TextPart(text),))]) for text in ("hello", "what do you see?")]
    alone = [await reply(case, conversation) for conversation in conversations]
    again = [await reply(case, conversation) for conversation in conversations]
    together = await asyncio.gather(*(reply(case, conversation) for conversation in conversations))
    for first, second, third in zip(alone, again, together, strict=True):
        # Some replies count the calls of the model.
        if text_of(first) == text_of(second):
            assert text_of(third) == text_of(first)


async def test_a_slow_reader_does_not_hold_back_another(case: Running[Engine]) -> None:
    slow = case.part.generate(Conversation(items=[Item("user", (TextPart("hello"),))]), case.options)
    async with aclosing(slow), asyncio.timeout(20):
        await anext(slow)
        assert text_of(await reply(case, Conversation(items=[Item("user", (TextPart("hi"),))])))


@pytest.mark.parametrize("kind", ENGINES)
async def test_it_starts_and_closes_twice_and_closes_without_a_start(kind: str, folder: Folder) -> None:
    async with ENGINES[kind](folder) as running:
        engine = running.part
        await engine.close()
        for _ in range(2):
            await engine.start()
            # More than it can hold at once.
            for _ in range(3):
                conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
                assert text_of(await reply(running, conversation))
            await engine.close()
            await engine.close()
