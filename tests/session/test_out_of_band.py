"""Answers out of band, beside the conversation's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from echosight.conversation import AudioPart, Conversation, Item
from echosight.engines import Chunk
from echosight.engines.stub import FakeEngine, words
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
from tests.rig import Bench, bench, loud, quiet

ASIDE = CreateResponse(conversation=False, metadata={"topic": "aside"})


def held(*answers: str, transcripts: tuple[str | Exception, ...] = ("what was said",)) -> FakeEngine:
    """An engine that waits for a permit before each piece."""
    return FakeEngine([words(answer) for answer in answers], transcripts, gate=asyncio.Semaphore(0))


def let_go(b: Bench, pieces: int = 100) -> None:
    assert b.engine.gate is not None
    for _ in range(pieces):
        b.engine.gate.release()


async def begun(b: Bench) -> str:
    return (await b.until(ResponseStarted)).response_id


async def test_it_is_made_beside_the_answer_in_progress() -> None:
    async with bench(held("the answer", "an aside")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await begun(b)
        await b.feed(ASIDE)
        aside = await begun(b)
        let_go(b)
        ended = {(await b.turn()).response_id, (await b.turn()).response_id}
        assert ended == {answer, aside}
        assert [item.text for item in b.session.conversation] == ["hi", "the answer"]
        shown, copied = b.engine.asked
        assert shown.id != copied.id
        assert [item.text for item in copied] == ["hi"]
        assert b.engine.released == [copied.id]


async def test_the_conversation_is_answered_while_it_is_made() -> None:
    async with bench(held("an aside", "the answer")) as b:
        await b.feed(ASIDE)
        aside = await begun(b)
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await begun(b)
        assert b.session.answering
        let_go(b)
        assert {(await b.turn()).response_id, (await b.turn()).response_id} == {answer, aside}


async def test_speech_does_not_interrupt_it() -> None:
    async with bench(held("the answer", "an aside")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await begun(b)
        await b.feed(ASIDE)
        aside = await begun(b)
        await b.feed(loud(320))
        ended = await b.turn()
        assert (ended.response_id, ended.outcome) == (answer, "cancelled")
        let_go(b)
        ended = await b.turn()
        assert (ended.response_id, ended.outcome) == (aside, "completed")
        assert b.of(SpeechStarted)


async def test_each_is_cancelled_by_its_name() -> None:
    async with bench(held("the answer", "an aside")) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await begun(b)
        await b.feed(ASIDE)
        aside = await begun(b)
        await b.feed(Cancel(aside, strict=True))
        ended = await b.turn()
        assert (ended.response_id, ended.outcome, ended.reason) == (aside, "cancelled", "client_cancelled")
        await b.feed(Cancel(strict=True))
        assert (await b.turn()).response_id == answer
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(aside, strict=True))


async def test_without_a_name_it_is_not_meant() -> None:
    async with bench(held("an aside")) as b:
        await b.feed(ASIDE)
        await begun(b)
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(strict=True))
        let_go(b)
        assert (await b.turn()).outcome == "completed"


async def test_there_is_room_for_a_few() -> None:
    async with bench(held("an aside")) as b:
        for _ in range(MAX_OUT_OF_BAND):
            await b.feed(ASIDE)
            await begun(b)
        with pytest.raises(InputError, match="out of band"):
            await b.feed(ASIDE)
        let_go(b)
        await b.turn()
        await b.feed(ASIDE)
        assert await begun(b)


async def test_a_reset_and_the_end_stop_it() -> None:
    engine = held("an aside")
    async with bench(engine) as b:
        await b.feed(ASIDE)
        await begun(b)
        await b.feed(Reset())
        assert (await b.turn()).outcome == "cancelled"
        await b.feed(ASIDE)
        await begun(b)
    assert engine.stopped == len(engine.asked)
    assert {shown.id for shown in engine.asked} <= set(engine.released)


async def test_what_goes_wrong_in_it_is_its_own_affair() -> None:
    async with bench(FakeEngine([[EngineFailure("no")], words("fine")])) as b:
        await b.feed(ASIDE)
        failed = await b.turn()
        assert (failed.outcome, failed.error) == ("failed", "no")
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        assert (await b.turn()).outcome == "completed"


async def test_it_knows_what_was_just_said() -> None:
    """Its copy of the conversation is of turns whose transcripts are still being finished."""
    async with bench(turn_detection=None) as b:
        await b.feed(loud(320), CommitInput(), ASIDE)
        await b.turn()
        assert [item.text for item in b.engine.asked[0]] == ["what was said"]


@pytest.mark.parametrize("conversation", [True, False])
async def test_speech_that_is_given_with_the_request_is_understood(conversation: bool) -> None:
    spoken = Item("user", (AudioPart(loud(320).chunk.pcm, 16_000, 320),))
    async with bench() as b:
        await b.feed(CreateResponse(conversation=conversation, input=(spoken,)))
        await b.turn()
        assert [item.text for item in b.engine.asked[0]] == ["what was said"]


async def test_an_answer_has_the_rate_that_was_asked_for() -> None:
    async with bench() as b:
        await b.feed(CreateResponse({"output_sample_rate": 8_000}))
        await b.turn()
        assert {event.chunk.rate for event in b.of(SpeechDelta)} == {8_000}


async def test_the_next_turn_is_answered_after_it_all() -> None:
    async with bench(held("an aside", "the answer")) as b:
        await b.feed(ASIDE)
        aside = await begun(b)
        await b.feed(loud(640), quiet(640))
        answer = await begun(b)
        let_go(b)
        ended = [await b.turn(), await b.turn()]
        assert {e.response_id for e in ended} == {aside, answer}
        assert {e.outcome for e in ended} == {"completed"}
        assert [item.text for item in b.session.conversation] == ["what was said", "the answer"]


class Slow(FakeEngine):
    """Forgets a conversation only when it is let."""

    def __init__(self) -> None:
        super().__init__([words("an aside")])
        self.forgetting = asyncio.Event()
        self.let = asyncio.Event()

    async def release(self, conversation_id: str) -> None:
        self.forgetting.set()
        await self.let.wait()
        await super().release(conversation_id)


async def test_what_has_ended_cannot_be_cancelled_and_is_forgotten() -> None:
    engine = Slow()
    async with bench(engine) as b:
        await b.feed(ASIDE)
        ended = await b.turn()
        await engine.forgetting.wait()
        with pytest.raises(InputError, match="Cancellation failed"):
            await b.feed(Cancel(ended.response_id, strict=True))
        resetting = asyncio.create_task(b.feed(Reset()))
        await asyncio.sleep(0)
        engine.let.set()
        await resetting
        assert engine.asked[0].id in engine.released


async def test_an_answer_to_other_input_is_forgotten_even_where_it_is_stopped() -> None:
    async with bench(held("the answer")) as b:
        await b.feed(CreateResponse(input=()))
        await begun(b)
        while not b.engine.asked:
            await asyncio.sleep(0)
        await b.feed(Cancel(strict=True))
        assert (await b.turn()).outcome == "cancelled"
        assert b.engine.released == [b.engine.asked[0].id]


class Reluctant(FakeEngine):
    """Stops an answer only when it is let."""

    def __init__(self) -> None:
        super().__init__([words("the answer")], gate=asyncio.Semaphore(1))
        self.stopping = asyncio.Event()
        self.let = asyncio.Event()

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        try:
            async with aclosing(super().generate(conversation, options)) as pieces:
                async for piece in pieces:
                    yield piece
        except asyncio.CancelledError:
            self.stopping.set()
            await self.let.wait()
            raise


@pytest.mark.parametrize("conversation", [True, False])
async def test_an_answer_that_is_being_stopped_when_the_client_is_lost_has_ended(conversation: bool) -> None:
    engine = Reluctant()
    async with bench(engine) as b:
        await b.feed(CreateResponse(conversation=conversation))
        turn = await begun(b)
        await b.until(TextDelta)
        stopping = asyncio.create_task(b.feed(Cancel(turn)))
        await engine.stopping.wait()
        stopping.cancel()
        ended = await b.turn()
        assert (ended.response_id, ended.outcome, ended.reason) == (turn, "cancelled", "client_cancelled")
        engine.let.set()
        await asyncio.wait([stopping])
        let_go(b)
        for _ in range(MAX_OUT_OF_BAND):  # it takes no room any more
            await b.feed(ASIDE)
        for _ in range(MAX_OUT_OF_BAND):
            await b.turn()
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        assert (await b.turn()).outcome == "completed"


async def test_it_takes_no_seat_that_the_conversation_needs() -> None:
    """An engine that makes one answer at a time: out of band there is room only while it makes none."""
    engine = held("an aside", "the answer")
    engine.capacity = 1
    async with bench(engine) as b:
        await b.feed(ASIDE)
        aside = await begun(b)
        while not engine.asked:
            await asyncio.sleep(0)
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        answer = await begun(b)
        with pytest.raises(InputError) as refused:
            await b.feed(ASIDE)
        assert refused.value.code == "engine_full"
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.asked) == 1
        let_go(b)
        assert [(await b.turn()).response_id, (await b.turn()).response_id] == [aside, answer]
        assert [item.text for item in b.session.conversation] == ["hi", "the answer"]
