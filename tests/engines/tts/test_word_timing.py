from echosight.engines import SpeechChunk
from echosight.engines.tts.word_timing import MS_A_CHARACTER, WordClock, spread_words
from echosight.media import Word

RATE = 1000
"""A sample a millisecond."""


def piece(ms: int, *words: Word) -> SpeechChunk:
    return SpeechChunk(bytes(2 * ms), words)


def test_words_are_spread_by_their_length() -> None:
    assert spread_words("one  three four", 1500) == (Word(0, 3), Word(500, 10), Word(1100, 15))
    assert spread_words("", 1000) == spread_words("   ", 1000) == ()


def test_the_voices_own_words_pass() -> None:
    clock = WordClock("one two", RATE)
    assert clock.words(piece(500, Word(0, 3))) == (Word(0, 3),)
    assert clock.words(piece(500)) == ()
    assert clock.words(piece(500, Word(1100, 7))) == (Word(1100, 7),)
    assert clock.rest() == ()


def test_unknown_words_come_with_the_piece_in_which_they_are_expected() -> None:
    clock = WordClock("aaaa bbbb cccc", RATE)
    assert clock.words(piece(MS_A_CHARACTER)) == (Word(0, 4),)
    assert clock.words(piece(5 * MS_A_CHARACTER)) == (Word(5 * MS_A_CHARACTER, 9),)
    assert clock.rest() == (Word(6 * MS_A_CHARACTER, 14),)


def test_words_never_go_back() -> None:
    """A voice whose first piece had no words was taken for one that knows none."""
    clock = WordClock("one two three", RATE)
    assert clock.words(piece(300)) == (Word(0, 3), Word(4 * MS_A_CHARACTER, 7))
    assert clock.words(piece(300, Word(100, 3), Word(250, 7), Word(400, 13))) == (Word(400, 13),)
