"""What was heard of an answer, to the word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.conversation import AudioPart
from echosight.media import Word
from echosight.session.playback import PlaybackTracker

TEXT = "One two, three."
WORDS = [Word(0, 3), Word(300, 8), Word(700, 15)]


def ledger() -> PlaybackTracker:
    made = PlaybackTracker(TEXT, WORDS, 1000)
    made.text_complete = True
    return made


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, ""), (1, "One"), (300, "One"), (301, "One two,"), (700, "One two,"), (999, TEXT), (1000, TEXT), (5000, TEXT)],
)
def test_a_word_counts_once_it_has_begun(ms: float, text: str) -> None:
    assert ledger().text_until(ms) == text


def test_text_that_runs_ahead_of_speech_was_not_played() -> None:
    made = PlaybackTracker()
    made.add_text("One two. And more to come.")
    made.add_audio(500, [Word(0, 3), Word(200, 8)])
    assert made.text_until(500) == "One two."


@pytest.mark.parametrize(
    ("made_hz", "sent_hz"), [(22_050, 24_000), (22_050, 48_000), (22_050, 8_000), (24_000, 48_000)]
)
def test_resampled_speech_is_played_out_at_its_end(made_hz: int, sent_hz: int) -> None:
    """Rates do not divide into each other, so what is sent may be a little shorter than what was made."""
    for samples in range(made_hz, made_hz + 50):
        made = PlaybackTracker()
        made.add_text("One two.")
        made.add_audio(samples * 1000 / made_hz, [Word(0, 3), Word(200, 7)])
        made.text_complete = True
        made.mark_audio_sent(samples * sent_hz // made_hz * 1000 / sent_hz, now=5.0)
        assert made.is_playing(5.5)
        assert not made.is_playing(7.0)
        assert made.text_until(made.played_ms(7.0)) == "One two."


def test_without_word_times_the_text_is_cut_in_proportion_to_whole_words() -> None:
    made = PlaybackTracker("one two three four", (), 1000)
    assert made.text_until(500) == "one two"
    assert made.text_until(0) == ""


def test_what_was_played_is_limited_by_what_was_sent_and_by_time() -> None:
    made = ledger()
    assert made.played_ms(now=10) == 0
    made.mark_audio_sent(400, now=10)
    assert made.played_ms(now=10.25) == 250
    assert made.played_ms(now=11) == 400
    assert made.is_playing(now=11), "the rest was not even sent"
    made.mark_audio_sent(600, now=11)
    assert not made.is_playing(now=11.5)


def test_the_clients_report_counts_more_than_the_clock() -> None:
    made = ledger()
    made.mark_audio_sent(1000, now=0)
    made.report_played(320)
    assert made.played_ms(now=50) == 320
    made.report_played(99_999)
    assert made.played_ms(now=50) == 1000


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30).map(sorted), st.integers(0, 6000))
def test_truncation_keeps_only_words_that_have_begun(starts: list[int], ms: int) -> None:
    words = [Word(start, 2 * at + 2) for at, start in enumerate(starts)]
    made = PlaybackTracker("a " * len(starts), words, 6000)
    kept = len(made.text_until(ms)) // 2
    assert all(word.start_ms < ms for word in words[:kept])
    assert all(word.start_ms >= ms for word in words[kept:])


def test_an_old_item_can_still_be_cut() -> None:
    part = AudioPart(None, 24_000, 1000, TEXT, tuple(WORDS))
    assert PlaybackTracker.of_part(part).truncated_at(350).transcript == "One two,"


def test_nothing_is_played_before_the_first_chunk_is_sent() -> None:
    made = PlaybackTracker()
    made.add_audio(1200, ())
    assert made.buffered_ms(now=50.0) == 1200
    made.mark_audio_sent(40, now=50.0)
    assert made.buffered_ms(now=50.5) == 700
