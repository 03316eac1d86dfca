"""The queue between a session and its reader."""

from __future__ import annotations

import asyncio

from echosight.events import Output, ResponseEnded, ResponseStarted, SpeechDelta, Synced, TextDelta, TranscriptUpdated
from echosight.media import AudioChunk, Transcript
from echosight.options import GenerateOptions
from echosight.session.outbox import HIGH_WATER_BYTES, MAX_EVENTS, Outbox


def speech(turn: str = "t", size: int = 1000) -> SpeechDelta:
    return SpeechDelta(turn, "i", AudioChunk(b"\0" * size, 24_000))


async def read_all(outbox: Outbox) -> list[Output]:
    outbox.close()
    events: list[Output] = []
    while (event := await outbox.get()) is not None:
        events.append(event)
    return events


async def test_events_come_out_in_order() -> None:
    outbox = Outbox()
    outbox.push(ResponseStarted("t", GenerateOptions()))
    await outbox.put(TextDelta("t", "i", "a"))
    outbox.push(ResponseEnded("t", "completed"))
    assert [type(e).__name__ for e in await read_all(outbox)] == ["ResponseStarted", "TextDelta", "ResponseEnded"]


async def test_a_full_outbox_blocks_deltas_and_no_announcement() -> None:
    outbox = Outbox()
    await outbox.put(speech(size=HIGH_WATER_BYTES))
    waiting = asyncio.create_task(outbox.put(speech()))
    await asyncio.sleep(0)
    outbox.push(Synced("m", False))
    assert not waiting.done()
    assert isinstance(await outbox.get(), SpeechDelta)
    await waiting
    assert isinstance(await outbox.get(), Synced)


async def test_dropping_a_response_makes_space_and_keeps_the_rest() -> None:
    outbox = Outbox()
    await outbox.put(speech("old", HIGH_WATER_BYTES))
    waiting = asyncio.create_task(outbox.put(speech("new")))
    await asyncio.sleep(0)
    outbox.push(ResponseEnded("old", "cancelled"))
    outbox.drop_response("old")
    await waiting
    assert [getattr(e, "response_id", None) for e in await read_all(outbox)] == ["old", "new"]


async def test_a_client_that_never_reads_overflows_the_outbox() -> None:
    outbox = Outbox()
    for _ in range(MAX_EVENTS + 1):
        outbox.push(Synced("m", False))
    assert outbox.closed
    assert outbox.overflowed
    assert len(outbox) == MAX_EVENTS


async def test_unread_partial_transcripts_are_replaced() -> None:
    outbox = Outbox()
    for text in ("go", "go forward"):
        outbox.push(TranscriptUpdated("i", Transcript(text, final=False)))
    outbox.push(TranscriptUpdated("i", Transcript("go forward ten meters")))
    outbox.push(TranscriptUpdated("j", Transcript("next", final=False)))
    heard = [e.transcript.text for e in await read_all(outbox) if isinstance(e, TranscriptUpdated)]
    assert heard == ["go forward ten meters", "next"]


async def test_a_late_reader_gets_only_the_latest_response() -> None:
    outbox = Outbox()
    for turn, outcome in (("1", "cancelled"), ("2", "completed")):
        outbox.push(ResponseStarted(turn, GenerateOptions()))
        outbox.push(ResponseEnded(turn, outcome))  # type: ignore[arg-type]
    outbox.skip_to_latest_response()
    assert [e.response_id for e in await read_all(outbox) if isinstance(e, ResponseStarted | ResponseEnded)] == [
        "2",
        "2",
    ]


async def test_a_cancelled_response_is_not_kept_for_a_late_reader() -> None:
    outbox = Outbox()
    outbox.push(ResponseStarted("1", GenerateOptions()))
    outbox.push(ResponseEnded("1", "cancelled"))
    outbox.skip_to_latest_response()
    assert await read_all(outbox) == []


async def test_closing_wakes_a_waiting_reader() -> None:
    outbox = Outbox()
    reader = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.close()
    assert await reader is None
