"""What the server remembers of frames is bounded: in number, in bytes, and in time."""

from __future__ import annotations

import pytest

from echosight.media import ImageFrame
from echosight.server.frames import MAX_FRAMES, MAX_IMAGE_BYTES, MAX_SESSIONS, FrameMemory, FrameRequest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> FrameMemory:
    return FrameMemory(60, clock)


def shown(session_id: str = "s", caller: str = "me", data: bytes = b"jpeg") -> FrameRequest:
    return FrameRequest(ImageFrame(data, "image/jpeg", 1, 1), caller, session_id)


def replies(memory: FrameMemory, session_id: str = "s", caller: str = "me") -> list[str]:
    return [seen.reply for seen in memory.recall(caller, session_id)]


def test_a_session_keeps_its_last_frames_and_the_newest_picture(memory: FrameMemory) -> None:
    for number in range(MAX_FRAMES + 2):
        memory.remember(shown(), str(number))
    assert replies(memory) == [str(number) for number in range(2, MAX_FRAMES + 2)]
    assert [seen.frame is not None for seen in memory.recall("me", "s")] == [False] * (MAX_FRAMES - 1) + [True]


def test_a_session_belongs_to_its_caller(memory: FrameMemory) -> None:
    memory.remember(shown(), "mine")
    assert replies(memory, caller="other") == []


def test_the_sessions_that_were_used_least_recently_are_forgotten(memory: FrameMemory) -> None:
    for number in range(MAX_SESSIONS):
        memory.remember(shown(str(number)), "seen")
    memory.remember(shown("0"), "again")
    memory.remember(shown("new"), "seen")
    assert replies(memory, "0") == ["seen", "again"]
    assert replies(memory, "1") == []


def test_pictures_of_all_sessions_stay_within_a_size(memory: FrameMemory) -> None:
    for name in ("a", "b", "c"):
        memory.remember(shown(name, data=bytes(MAX_IMAGE_BYTES // 2)), "seen")
    assert [replies(memory, name) for name in ("a", "b", "c")] == [[], ["seen"], ["seen"]]


def test_a_session_is_forgotten_after_a_while(memory: FrameMemory, clock: Clock) -> None:
    memory.remember(shown(), "seen")
    clock.now = 60
    assert replies(memory) == ["seen"]
    clock.now = 60.5
    assert replies(memory) == []
