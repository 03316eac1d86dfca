"""Word times in synthesised speech: those of the TTS, or estimates where it gives none."""

from __future__ import annotations

import re

from echosight.engines import SpeechChunk
from echosight.media import Word, pcm_ms

MS_PER_CHARACTER = 65
"""About 15 characters per second."""


def spread_words(text: str, duration_ms: int) -> tuple[Word, ...]:
    """The words of `text` spread over `duration_ms` of speech in proportion to their length."""
    words = re.finditer(r"\S+", text)
    return tuple(Word(duration_ms * word.start() // len(text), word.end()) for word in words)


def spoken_words(text: str) -> list[re.Match[str]]:
    """The words of `text` that have a letter or a digit: a voice does not speak the others."""
    return [word for word in re.finditer(r"\S+", text) if any(character.isalnum() for character in word[0])]


class WordTimer:
    """Finds the words that begin in each chunk of a sentence's speech.

    Once a chunk has words, only the words of the TTS count; until then they are estimated from the length of the text.
    The results are in order, in text and in time, and have no word twice.
    """

    def __init__(self, text: str, rate: int) -> None:
        self._estimated = list(spread_words(text, MS_PER_CHARACTER * len(text)))
        self._rate = rate
        self._bytes = 0
        self._tts_has_words = False
        self._last = Word(0, 0)

    def words_in(self, chunk: SpeechChunk) -> tuple[Word, ...]:
        """The words that begin in the next chunk."""
        self._bytes += len(chunk.pcm)
        self._tts_has_words = self._tts_has_words or bool(chunk.words)
        if self._tts_has_words:
            return self._in_order(chunk.words)
        begun = tuple(word for word in self._estimated if word.start_ms < self._now_ms)
        del self._estimated[: len(begun)]
        return self._in_order(begun)

    def flush(self) -> tuple[Word, ...]:
        """The speech is over: the words that were expected later, at its end."""
        if self._tts_has_words:
            return ()
        return self._in_order(tuple(Word(min(w.start_ms, self._now_ms), w.text_end) for w in self._estimated))

    @property
    def _now_ms(self) -> int:
        return pcm_ms(self._bytes, self._rate)

    def _in_order(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        ordered = []
        for word in words:
            if word.text_end > self._last.text_end:
                self._last = Word(max(word.start_ms, self._last.start_ms), word.text_end)
                ordered.append(self._last)
        return tuple(ordered)
