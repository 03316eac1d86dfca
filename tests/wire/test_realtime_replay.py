"""The events that a client that comes back is sent again."""

from __future__ import annotations

import orjson

from echosight.wire.realtime.replay import ReplayBuffer
from tests.wire.realtime_rig import client


def numbers_of(messages: list[str] | None) -> list[int]:
    assert messages is not None
    return [orjson.loads(message)["n"] for message in messages]


def sent(replay: ReplayBuffer, *values: int) -> list[str]:
    """The ids of events that were sent."""
    return [orjson.loads(replay.add({"n": value}))["event_id"] for value in values]


def test_all_later_messages_are_replayed() -> None:
    replay = ReplayBuffer()
    ids = sent(replay, 1, 2, 3)
    assert numbers_of(replay.after(ids[0])) == [2, 3]
    assert numbers_of(replay.after(ids[2])) == []


def test_unknown_ids_replay_nothing() -> None:
    replay = ReplayBuffer()
    (known,) = sent(replay, 1)
    (foreign,) = sent(ReplayBuffer(), 1)
    later = known[:-1] + "9"
    for unknown in ("", "event", foreign, later, known + "x", known + "9" * 5_000):
        assert replay.after(unknown) is None


def test_the_buffer_is_bounded_in_bytes() -> None:
    replay = ReplayBuffer(keep_bytes=200)
    ids = sent(replay, *range(20))
    assert replay.after(ids[0]) is None
    assert numbers_of(replay.after(ids[-2])) == [19]


def test_the_previous_response_is_kept_and_earlier_ones_are_dropped() -> None:
    replay = ReplayBuffer()
    greeting = sent(replay, 0)
    replay.begin_response()
    first = sent(replay, 1, 2)
    replay.begin_response()
    assert numbers_of(replay.after(greeting[0])) == [1, 2]
    second = sent(replay, 3, 4)
    replay.begin_response()
    sent(replay, 5)
    assert replay.after(first[0]) is None
    assert numbers_of(replay.after(first[1])) == [3, 4, 5]
    assert numbers_of(replay.after(second[1])) == [5]


async def test_responses_out_of_band_drop_no_events() -> None:
    async with client() as talk:
        await talk.write("hi")
        await talk.send("response.create")
        last = (await talk.until("response.created"))["event_id"]
        await talk.until("rate_limits.updated")
        for _ in range(3):
            await talk.send("response.create", response={"conversation": "none"})
            await talk.until("rate_limits.updated")
        missed = talk.wire.replay.after(last)
        assert missed is not None
        after = [event["event_id"] for event in talk.seen]
        assert [orjson.loads(message)["event_id"] for message in missed] == after[after.index(last) + 1 :]
