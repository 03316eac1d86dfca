"""The playout buffer of a call plays one response after the other, in whatever order their speech comes."""

from __future__ import annotations

from echosight.routes.playout import FRAME_SAMPLES, PlayoutBuffer

FRAME = 2 * FRAME_SAMPLES


class Listener:
    """A playout buffer, and what it has reported."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str]] = []
        self.progress: list[tuple[str, float]] = []
        self.playout = PlayoutBuffer(
            lambda state, response: self.states.append((state, response)),
            lambda response, ms: self.progress.append((response, ms)),
        )

    def push(self, response: str, frames: float) -> None:
        self.playout.push(response, response.encode() * round(FRAME * frames))

    def frames(self, number: int) -> str:
        """The response that is played in each frame; ``-`` is silence."""
        frames = [self.playout.next_frame() for _ in range(number)]
        assert {len(frame) for frame in frames} == {FRAME}
        return "".join("-" if not any(frame) else "".join(sorted(set(frame.decode().strip("\0")))) for frame in frames)


def test_responses_do_not_cut_into_each_other() -> None:
    listener = Listener()
    for _ in range(3):
        listener.push("a", 1)
        listener.push("b", 1)
    assert listener.frames(2) == "aa"
    listener.playout.finish("b")
    assert listener.frames(2) == "a-", "a is not finished"
    listener.push("a", 1)
    listener.playout.finish("a")
    assert listener.frames(5) == "abbb-"
    assert listener.states == [("started", "a"), ("stopped", "a"), ("started", "b"), ("stopped", "b")]


def test_a_frame_is_filled_up_with_the_next_response() -> None:
    listener = Listener()
    listener.push("a", 0.5)
    listener.push("b", 0.5)
    listener.playout.finish("a")
    assert listener.frames(1) == "ab"


def test_one_response_is_cleared_and_the_others_are_played() -> None:
    listener = Listener()
    listener.push("a", 3)
    listener.push("b", 2)
    listener.push("c", 1)
    assert listener.frames(1) == "a"
    listener.playout.clear("a")
    assert listener.frames(1) == "b"
    listener.playout.clear("unknown")
    listener.playout.clear()
    assert listener.frames(1) == "-"
    cleared = [state for state in listener.states if state[0] == "cleared"]
    assert cleared == [("cleared", "a"), ("cleared", "b"), ("cleared", "c")]


def test_a_response_without_speech_leaves_nothing_behind() -> None:
    listener = Listener()
    listener.playout.finish("silent")
    listener.push("a", 1)
    assert listener.frames(1) == "a"
    assert listener.states == [("started", "a")]


def test_it_reports_how_much_was_played() -> None:
    listener = Listener()
    listener.push("a", 1.5)
    listener.push("b", 1)
    listener.playout.finish("a")
    assert listener.frames(2) == "aab"
    assert listener.progress == [("a", 0.0), ("b", 0.0), ("a", 20.0), ("a", 30.0), ("b", 10.0)]


def test_a_cleared_response_stays_silent_while_it_is_still_generated() -> None:
    listener = Listener()
    listener.push("a", 2)
    assert listener.frames(1) == "a"
    listener.playout.clear()
    listener.push("a", 2)
    assert listener.frames(1) == "-"
    listener.playout.finish("a")
    listener.push("b", 1)
    assert listener.frames(2) == "b-"
    assert listener.states == [("started", "a"), ("cleared", "a"), ("started", "b")]
