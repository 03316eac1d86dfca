"""What a call plays: one answer after the other, whatever comes first."""

from __future__ import annotations

from echosight.routes.playout import FRAME_SAMPLES, PlayoutBuffer

FRAME = 2 * FRAME_SAMPLES


class TranscriptUpdated:
    """A loudspeaker and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.played: list[tuple[str, float]] = []
        self.speaker = PlayoutBuffer(
            lambda what, turn: self.told.append((what, turn)), lambda turn, ms: self.played.append((turn, ms))
        )

    def say(self, turn: str, frames: float) -> None:
        self.speaker.say(turn, turn.encode() * round(FRAME * frames))

    def frames(self, number: int) -> str:
        """Whose sound it was, frame by frame; ``-`` is silence."""
        heard = [self.speaker.frame() for _ in range(number)]
        assert {len(frame) for frame in heard} == {FRAME}
        return "".join("-" if not any(frame) else "".join(sorted(set(frame.decode().strip("\0")))) for frame in heard)


def test_answers_do_not_cut_into_each_other() -> None:
    h = TranscriptUpdated()
    for _ in range(3):
        h.say("a", 1)
        h.say("b", 1)
    assert h.frames(2) == "aa"
    h.speaker.end("b")
    assert h.frames(2) == "a-", "it is not over"
    h.say("a", 1)
    h.speaker.end("a")
    assert h.frames(5) == "abbb-"
    assert h.told == [("started", "a"), ("stopped", "a"), ("started", "b"), ("stopped", "b")]


def test_a_frame_is_filled_with_the_next_answer() -> None:
    h = TranscriptUpdated()
    h.say("a", 0.5)
    h.say("b", 0.5)
    h.speaker.end("a")
    assert h.frames(1) == "ab"


def test_one_is_cleared_and_the_others_are_played() -> None:
    h = TranscriptUpdated()
    h.say("a", 3)
    h.say("b", 2)
    h.say("c", 1)
    assert h.frames(1) == "a"
    h.speaker.clear("a")
    assert h.frames(1) == "b"
    h.speaker.clear("unknown")
    h.speaker.clear()
    assert h.frames(1) == "-"
    assert [what for what in h.told if what[0] == "cleared"] == [("cleared", "a"), ("cleared", "b"), ("cleared", "c")]


def test_an_answer_that_never_spoke_leaves_nothing() -> None:
    h = TranscriptUpdated()
    h.speaker.end("silent")
    h.say("a", 1)
    assert h.frames(1) == "a"
    assert h.told == [("started", "a")]


def test_it_says_how_much_was_played() -> None:
    h = TranscriptUpdated()
    h.say("a", 1.5)
    h.say("b", 1)
    h.speaker.end("a")
    assert h.frames(2) == "aab"
    assert h.played == [("a", 0.0), ("b", 0.0), ("a", 20.0), ("a", 30.0), ("b", 10.0)]


def test_what_was_cleared_stays_silent_though_it_is_still_being_made() -> None:
    h = TranscriptUpdated()
    h.say("a", 2)
    assert h.frames(1) == "a"
    h.speaker.clear()
    h.say("a", 2)
    assert h.frames(1) == "-"
    h.speaker.end("a")
    h.say("b", 1)
    assert h.frames(2) == "b-"
    assert h.told == [("started", "a"), ("cleared", "a"), ("started", "b")]
