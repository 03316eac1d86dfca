"""What a client that comes back is told again."""

from __future__ import annotations

import orjson

from echosight.wire.realtime.replay import ReplayBuffer
from tests.wire.realtime_rig import client


def numbers(messages: list[str] | None) -> list[int]:
    assert messages is not None
    return [orjson.loads(message)["n"] for message in messages]


def sent(log: ReplayBuffer, *values: int) -> list[str]:
    """The ids of events that were sent."""
    return [orjson.loads(log.add({"n": value}))["event_id"] for value in values]


def test_all_that_came_after() -> None:
    log = ReplayBuffer()
    ids = sent(log, 1, 2, 3)
    assert numbers(log.after(ids[0])) == [2, 3]
    assert numbers(log.after(ids[2])) == []


def test_unknown_ids() -> None:
    log = ReplayBuffer()
    (known,) = sent(log, 1)
    (foreign,) = sent(ReplayBuffer(), 1)
    later = known[:-1] + "9"
    for unknown in ("", "event", foreign, later, known + "x", known + "9" * 5_000):
        assert log.after(unknown) is None


def test_what_is_kept_is_bounded() -> None:
    log = ReplayBuffer(keep_bytes=200)
    ids = sent(log, *range(20))
    assert log.after(ids[0]) is None
    assert numbers(log.after(ids[-2])) == [19]


def test_the_last_answer_is_kept_and_those_before_are_not() -> None:
    log = ReplayBuffer()
    greeting = sent(log, 0)
    log.begin_response()
    first = sent(log, 1, 2)
    log.begin_response()
    assert numbers(log.after(greeting[0])) == [1, 2]
    second = sent(log, 3, 4)
    log.begin_response()
    sent(log, 5)
    assert log.after(first[0]) is None
    assert numbers(log.after(first[1])) == [3, 4, 5]
    assert numbers(log.after(second[1])) == [5]


async def test_responses_out_of_band_do_not_shorten_what_is_kept() -> None:
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
