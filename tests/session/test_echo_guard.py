"""A turn that only repeats the answer is none; one that means it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.conversation import AudioPart, Item
from echosight.events import ItemRemoved, ResponseEnded, SpeechDelta
from echosight.media import Word
from echosight.session.echo_guard import EchoGuard, repeats
from echosight.session.playback import PlaybackTracker
from tests.fakes import ScriptedEngine, words
from tests.rig import bench, loud, quiet

ANSWER = "Would you like a cup of tea or rather some coffee"
TIMES = [Word(300 * n, len(" ".join(ANSWER.split()[: n + 1]))) for n in range(len(ANSWER.split()))]


@pytest.mark.parametrize(
    ("said", "played"),
    [
        ("cup of tea", "a cup of tea, or"),
        ("Tea?", "a cup of tea"),
        ("a cup off tea or rather", "a cup of tea or rather some"),
        ("recogniser", "the recognizer"),
        ("一杯茶", "要不要一杯茶"),
    ],
)
def test_a_transcript_that_repeats_what_was_played_is_found(said: str, played: str) -> None:
    assert repeats(said, played)


@pytest.mark.parametrize(
    ("said", "played"),
    [
        ("", "a cup of tea"),
        ("no", "I know nothing"),
        ("tea please", "a cup of tea"),
        ("tea of cup a", "a cup of tea"),
        ("a cup of something else entirely", "a cup of tea"),
        ("喝咖啡", "要不要一杯茶"),
        ("stop", ""),
    ],
)
def test_the_users_own_words_are_no_repetition(said: str, played: str) -> None:
    assert not repeats(said, played)


@given(st.lists(st.sampled_from(ANSWER.split()), max_size=20), st.text(max_size=40))
def test_every_text_repeats_itself_and_none_repeats_silence(chosen: list[str], text: str) -> None:
    said = " ".join(chosen)
    assert repeats(said, f"{text} {said}") == bool(chosen)
    assert not repeats(text, "")


def playing(at_ms: int) -> PlaybackTracker:
    """The answer, all of it sent, `at_ms` of it played."""
    ledger = PlaybackTracker(ANSWER, TIMES, duration_ms=3300)
    ledger.text_complete = True
    ledger.mark_audio_sent(3300, 0)
    ledger.report_played(at_ms)
    return ledger


def turn(text: str | None, ms: int = 600) -> Item:
    return Item("user", (AudioPart(b"", duration_ms=ms, transcript=text),), id="user")


@pytest.mark.parametrize(
    ("at_ms", "said", "echo"),
    [
        (1800, "tea", True),
        (1800, "cup of tea", True),
        (1800, "or rather", True),  # it was on its way to the loudspeaker
        (1800, "would you like", False),  # that was said long before
        (3100, "tea", False),  # an answer to it
        (3300, "coffee", False),  # so is this: nothing is played any more
        (1800, "tea please", False),
        (1800, None, False),
    ],
)
def test_only_words_played_during_the_turn_are_echo(at_ms: int, said: str | None, echo: bool) -> None:
    guard = EchoGuard()
    guard.speech_started("user", playing(at_ms), now=0)
    assert guard.is_echo(turn(said)) is echo


def test_a_turn_is_compared_only_with_what_was_played_during_it() -> None:
    guard = EchoGuard()
    assert not guard.is_echo(turn("tea"))
    guard.speech_started("earlier", playing(1800), now=0)
    assert not guard.is_echo(turn("tea"))
    guard.speech_started("user", playing(1800), now=0)
    guard.speech_started("user", None, now=0)
    assert not guard.is_echo(turn("tea"))


@pytest.mark.parametrize(("said", "outcome"), [("like a cup", "cancelled"), ("I would rather not", "completed")])
async def test_a_session_does_not_respond_to_its_own_echo(said: str, outcome: str) -> None:
    engine = ScriptedEngine(answers=[words(ANSWER, 300), words("As you like")], transcripts=["a question", said])
    async with bench(engine) as b:
        await b.feed(quiet(320), loud(640), quiet(640))
        await b.turn()
        b.clock.now += 1.0
        await b.feed(loud(640), quiet(640))
        ended = await b.turn()
        assert ended.outcome == outcome
        echo = outcome == "cancelled"
        assert ended.reason == ("echo" if echo else None)
        assert len(b.of(ItemRemoved)) == echo
        assert len([item for item in b.session.conversation if item.role == "user"]) == (1 if echo else 2)
        assert [event for event in b.of(SpeechDelta) if event.response_id == ended.response_id] == [] or not echo
        assert len(b.of(ResponseEnded)) == 2
        await b.feed(quiet(320), loud(640), quiet(640))  # and the talk goes on
        assert (await b.turn()).outcome == "completed"
