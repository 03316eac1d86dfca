"""Responses out of band, next to the conversation's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from echosight.conversation import AudioPart, Conversation, Item
from echosight.engines import Chunk
from echosight.errors import EngineFailure, InputError
from echosight.events import (
    Cancel,
    CommitInput,
    CreateResponse,
    Reset,
    ResponseStarted,
    SpeechDelta,
    SpeechStarted,
    Text,
    TextDelta,
)
from echosight.options import GenerateOptions
from echosight.session.out_of_band import MAX_OUT_OF_BAND
from tests.fakes import ScriptedEngine, words
from tests.rig import Bench, bench, loud, quiet

OUT_OF_BAND = CreateResponse(conversation=False, metadata={"topic": "copy"})


def gated(*answers: str, transcripts: tuple[str | Exception, ...] = ("what was said",)) -> ScriptedEngine:
    """An engine that waits for a permit before each chunk."""
    return ScriptedEngine([words(answer) for answer in answers], transcripts, gate=asyncio.Semaphore(0))


def release_chunks(b: Bench, chunks: int = 100) -> None:
    assert b.engine.gate is not None
    for _ in range(chunks):
        b.engine.gate.release()


async def started(b: Bench) -> str:
    return (await b.until(ResponseStarted)).response_id


async def test_it_runs_next_to_the_response_in_progress() -> None:
    async with bench(gated("the answer", "a copy")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await started(b)
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        release_chunks(b)
        ended = {(await b.turn()).response_id, (await b.turn()).response_id}
        assert ended == {answer, copy}
        assert [item.text for item in b.session.conversation] == ["hi", "the answer"]
        shown, copied = b.engine.conversations
        assert shown.id != copied.id
        assert [item.text for item in copied] == ["hi"]
        assert b.engine.released == [copied.id]


async def test_the_conversation_is_responded_to_while_it_runs() -> None:
    async with bench(gated("a copy", "the answer")) as b:
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await started(b)
        assert b.session.generating
        release_chunks(b)
        assert {(await b.turn()).response_id, (await b.turn()).response_id} == {answer, copy}


async def test_speech_does_not_interrupt_it() -> None:
    async with bench(gated("the answer", "a copy")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await started(b)
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        await b.feed(loud(320))
        ended = await b.turn()
        assert (ended.response_id, ended.outcome) == (answer, "cancelled")
        release_chunks(b)
        ended = await b.turn()
        assert (ended.response_id, ended.outcome) == (copy, "completed")
        assert b.of(SpeechStarted)


async def test_each_is_cancelled_by_its_id() -> None:
    async with bench(gated("the answer", "a copy")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await started(b)
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        await b.feed(Cancel(copy, strict=True))
        ended = await b.turn()
        assert (ended.response_id, ended.outcome, ended.reason) == (copy, "cancelled", "client_cancelled")
        await b.feed(Cancel(strict=True))
        assert (await b.turn()).response_id == answer
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(copy, strict=True))


async def test_a_cancel_without_an_id_leaves_it_running() -> None:
    async with bench(gated("a copy")) as b:
        await b.feed(OUT_OF_BAND)
        await started(b)
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(strict=True))
        release_chunks(b)
        assert (await b.turn()).outcome == "completed"


async def test_their_number_is_limited() -> None:
    async with bench(gated("a copy")) as b:
        for _ in range(MAX_OUT_OF_BAND):
            await b.feed(OUT_OF_BAND)
            await started(b)
        with pytest.raises(InputError, match="out of band"):
            await b.feed(OUT_OF_BAND)
        release_chunks(b)
        await b.turn()
        await b.feed(OUT_OF_BAND)
        assert await started(b)


async def test_reset_and_close_cancel_it() -> None:
    engine = gated("a copy")
    async with bench(engine) as b:
        await b.feed(OUT_OF_BAND)
        await started(b)
        await b.feed(Reset())
        assert (await b.turn()).outcome == "cancelled"
        await b.feed(OUT_OF_BAND)
        await started(b)
    assert engine.stopped == len(engine.conversations)
    assert {shown.id for shown in engine.conversations} <= set(engine.released)


async def test_its_failure_does_not_affect_the_conversation() -> None:
    async with bench(ScriptedEngine([[EngineFailure("no")], words("fine")])) as b:
        await b.feed(OUT_OF_BAND)
        failed = await b.turn()
        assert (failed.outcome, failed.error) == ("failed", "no")
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        assert (await b.turn()).outcome == "completed"


async def test_it_sees_the_transcript_of_the_turn_before_it() -> None:
    """Its copy of the conversation is of turns whose transcripts are still being finished."""
    async with bench(turn_detection=None) as b:
        await b.feed(loud(320), CommitInput(), OUT_OF_BAND)
        await b.turn()
        assert [item.text for item in b.engine.conversations[0]] == ["what was said"]


@pytest.mark.parametrize("conversation", [True, False])
async def test_speech_in_the_request_is_transcribed(conversation: bool) -> None:
    spoken = Item("user", (AudioPart(loud(320).chunk.pcm, 16_000, 320),))
    async with bench() as b:
        await b.feed(CreateResponse(conversation=conversation, input=(spoken,)))
        await b.turn()
        assert [item.text for item in b.engine.conversations[0]] == ["what was said"]


async def test_a_response_has_the_sample_rate_of_its_request() -> None:
    async with bench() as b:
        await b.feed(CreateResponse({"output_sample_rate": 8_000}))
        await b.turn()
        assert {event.chunk.rate for event in b.of(SpeechDelta)} == {8_000}


async def test_the_next_turn_gets_a_response_afterwards() -> None:
    async with bench(gated("a copy", "the answer")) as b:
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        await b.feed(loud(640), quiet(640))
        answer = await started(b)
        release_chunks(b)
        ended = [await b.turn(), await b.turn()]
        assert {e.response_id for e in ended} == {copy, answer}
        assert {e.outcome for e in ended} == {"completed"}
        assert [item.text for item in b.session.conversation] == ["what was said", "the answer"]


class Slow(ScriptedEngine):
    """Forgets a conversation only when it is let."""

    def __init__(self) -> None:
        super().__init__([words("a copy")])
        self.forgetting = asyncio.Event()
        self.let = asyncio.Event()

    async def release(self, conversation_id: str) -> None:
        self.forgetting.set()
        await self.let.wait()
        await super().release(conversation_id)


async def test_one_that_ended_cannot_be_cancelled_and_is_released() -> None:
    engine = Slow()
    async with bench(engine) as b:
        await b.feed(OUT_OF_BAND)
        ended = await b.turn()
        await engine.forgetting.wait()
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(ended.response_id, strict=True))
        resetting = asyncio.create_task(b.feed(Reset()))
        await asyncio.sleep(0)
        engine.let.set()
        await resetting
        assert engine.conversations[0].id in engine.released


async def test_a_copy_is_released_even_if_its_response_is_cancelled() -> None:
    async with bench(gated("the answer")) as b:
        await b.feed(CreateResponse(input=()))
        await started(b)
        while not b.engine.conversations:
            await asyncio.sleep(0)
        await b.feed(Cancel(strict=True))
        assert (await b.turn()).outcome == "cancelled"
        assert b.engine.released == [b.engine.conversations[0].id]


class Reluctant(ScriptedEngine):
    """Stops an answer only when it is let."""

    def __init__(self) -> None:
        super().__init__([words("the answer")], gate=asyncio.Semaphore(1))
        self.stopping = asyncio.Event()
        self.let = asyncio.Event()

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        try:
            async with aclosing(super().generate(conversation, options)) as chunks:
                async for piece in chunks:
                    yield piece
        except asyncio.CancelledError:
            self.stopping.set()
            await self.let.wait()
            raise


@pytest.mark.parametrize("conversation", [True, False])
async def test_a_response_that_is_being_cancelled_when_the_client_is_lost_has_ended(conversation: bool) -> None:
    engine = Reluctant()
    async with bench(engine) as b:
        await b.feed(CreateResponse(conversation=conversation))
        turn = await started(b)
        await b.until(TextDelta)
        stopping = asyncio.create_task(b.feed(Cancel(turn)))
        await engine.stopping.wait()
        stopping.cancel()
        ended = await b.turn()
        assert (ended.response_id, ended.outcome, ended.reason) == (turn, "cancelled", "client_cancelled")
        engine.let.set()
        await asyncio.wait([stopping])
        release_chunks(b)
        for _ in range(MAX_OUT_OF_BAND):  # it takes no room any more
            await b.feed(OUT_OF_BAND)
        for _ in range(MAX_OUT_OF_BAND):
            await b.turn()
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        assert (await b.turn()).outcome == "completed"


async def test_it_takes_no_slot_that_the_conversation_needs() -> None:
    """An engine that makes one answer at a time: out of band there is room only while it makes none."""
    engine = gated("a copy", "the answer")
    engine.capacity = 1
    async with bench(engine) as b:
        await b.feed(OUT_OF_BAND)
        copy = await started(b)
        while not engine.conversations:
            await asyncio.sleep(0)
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await started(b)
        with pytest.raises(InputError) as refused:
            await b.feed(OUT_OF_BAND)
        assert refused.value.code == "engine_full"
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.conversations) == 1
        release_chunks(b)
        assert [(await b.turn()).response_id, (await b.turn()).response_id] == [copy, answer]
        assert [item.text for item in b.session.conversation] == ["hi", "the answer"]
