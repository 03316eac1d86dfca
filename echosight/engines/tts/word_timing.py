"""When the words of a sentence are spoken: as the voice says, or estimated where it does not know."""

from __future__ import annotations

import re

from echosight.engines import SpeechChunk
from echosight.media import Word

MS_A_CHARACTER = 65
"""About 15 characters a second."""


def spread_words(text: str, duration_ms: int) -> tuple[Word, ...]:
    """The words of `text` spread over `duration_ms` of speech by their length."""
    words = re.finditer(r"\S+", text)
    return tuple(Word(duration_ms * word.start() // len(text), word.end()) for word in words)


class WordClock:
    """Gives the words that begin in each piece of a sentence's speech."""

    def __init__(self, text: str, rate: int) -> None:
        self._estimated = list(spread_words(text, MS_A_CHARACTER * len(text)))
        self._rate = rate
        self._samples = 0
        self._timed = False
        self._last = Word(0, 0)

    def words(self, piece: SpeechChunk) -> tuple[Word, ...]:
        self._samples += len(piece.pcm) // 2
        self._timed = self._timed or bool(piece.words)
        if self._timed:
            return self._in_order(piece.words)
        now_ms = self._samples * 1000 // self._rate
        begun = tuple(word for word in self._estimated if word.start_ms < now_ms)
        del self._estimated[: len(begun)]
        return self._in_order(begun)

    def rest(self) -> tuple[Word, ...]:
        """The words that were spoken sooner than estimated. Call it when the speech is over."""
        now_ms = self._samples * 1000 // self._rate
        late = () if self._timed else tuple(Word(min(word.start_ms, now_ms), word.text_end) for word in self._estimated)
        return self._in_order(late)

    def _in_order(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        kept = []
        for word in words:
            if word.text_end > self._last.text_end:
                self._last = Word(max(word.start_ms, self._last.start_ms), word.text_end)
                kept.append(self._last)
        return tuple(kept)
