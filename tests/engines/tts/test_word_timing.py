"""Word times of a sentence: those of the TTS, and estimates."""

from __future__ import annotations

from echosight.engines import SpeechChunk
from echosight.engines.tts.word_timing import MS_PER_CHARACTER, WordTimer, spread_words
from echosight.media import Word

RATE = 1000
"""One sample per millisecond."""


def chunk(ms: int, *words: Word) -> SpeechChunk:
    return SpeechChunk(bytes(2 * ms), words)


def test_words_are_spread_by_their_length() -> None:
    assert spread_words("one  three four", 1500) == (Word(0, 3), Word(500, 10), Word(1100, 15))
    assert spread_words("", 1000) == spread_words("   ", 1000) == ()


def test_the_words_of_the_tts_pass() -> None:
    timer = WordTimer("one two", RATE)
    assert timer.words_in(chunk(500, Word(0, 3))) == (Word(0, 3),)
    assert timer.words_in(chunk(500)) == ()
    assert timer.words_in(chunk(500, Word(1100, 7))) == (Word(1100, 7),)
    assert timer.flush() == ()


def test_estimated_words_come_with_the_chunk_in_which_they_begin() -> None:
    timer = WordTimer("aaaa bbbb cccc", RATE)
    assert timer.words_in(chunk(MS_PER_CHARACTER)) == (Word(0, 4),)
    assert timer.words_in(chunk(5 * MS_PER_CHARACTER)) == (Word(5 * MS_PER_CHARACTER, 9),)
    assert timer.flush() == (Word(6 * MS_PER_CHARACTER, 14),)


def test_words_never_go_back() -> None:
    """The first chunk has no words, so they are estimated until the TTS gives some."""
    timer = WordTimer("one two three", RATE)
    assert timer.words_in(chunk(300)) == (Word(0, 3), Word(4 * MS_PER_CHARACTER, 7))
    assert timer.words_in(chunk(300, Word(100, 3), Word(250, 7), Word(400, 13))) == (Word(400, 13),)
