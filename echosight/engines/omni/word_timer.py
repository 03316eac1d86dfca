"""Estimates when the words of a reply are spoken, from the frames at which the talker received them."""

from __future__ import annotations

import re

from echosight.media import Word

_WORD = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\uffef]+"
)
LETTER_MS = 55
WORD_MS = 65
"""An English word of five letters takes 340 ms: about 175 words a minute."""
IDEOGRAPH_MS = 210


class TalkerWordTimer:
    """Spreads the words of the text over the speech.

    The talker receives one text token with each codec frame and speaks a word some time after its token, so that frame
    is the earliest time for the word. Behind it, words follow at an average speaking rate; when the speech has ended,
    the remaining words share its rest. The times are estimates between these two bounds. `frame_ms` is the length of a
    codec frame.
    """

    def __init__(self, frame_ms: float) -> None:
        self._frame_ms = frame_ms
        self._text = ""
        self._tokens: list[tuple[int, int]] = []
        """(length of the text behind it, frame) of each token."""
        self._scanned = 0
        self._waiting: list[tuple[int, int, float]] = []
        """(end in the text, duration in ms, earliest start in ms) of words that are not yet spoken."""
        self._next_start_ms = 0.0

    def add(self, text: str, frame: int) -> None:
        """The text grew by a token that the talker receives at `frame`."""
        self._text += text
        self._tokens.append((len(self._text), frame))
        self._scan(final=False)

    def words_between(self, start_ms: float, end_ms: float, *, final: bool) -> tuple[Word, ...]:
        """The words that begin in the speech from `start_ms` to `end_ms` of the reply; `final`: the speech ends there.

        Calls must follow each other without gaps. Times and text offsets count from the beginning of the reply.
        """
        if final:
            self._scan(final=True)
            return self._share(max(start_ms, self._next_start_ms), end_ms)
        words = []
        while self._waiting:
            text_end, duration, earliest = self._waiting[0]
            begin = max(self._next_start_ms, earliest, start_ms)
            if begin >= end_ms:
                break
            self._waiting.pop(0)
            words.append(Word(int(begin), text_end))
            self._next_start_ms = begin + duration
        return tuple(words)

    def _share(self, start_ms: float, end_ms: float) -> tuple[Word, ...]:
        """The remaining words, each with a part of the time in proportion to its duration."""
        start_ms = min(start_ms, end_ms)
        total = sum(duration for _, duration, _ in self._waiting)
        words = []
        for text_end, duration, _ in self._waiting:
            words.append(Word(int(start_ms), text_end))
            start_ms += (end_ms - start_ms) * duration / total
            total -= duration
        self._waiting = []
        return tuple(words)

    def _scan(self, *, final: bool) -> None:
        """Find words that are complete, because something follows them."""
        for match in _WORD.finditer(self._text, self._scanned):
            if match.end() == len(self._text) and not final:
                break
            word = match.group()
            duration = IDEOGRAPH_MS if ord(word[0]) >= 0x2E80 else WORD_MS + LETTER_MS * len(word)
            frame = next((frame for length, frame in self._tokens if length > match.start()), 0)
            self._waiting.append((match.end(), duration, frame * self._frame_ms))
            self._scanned = match.end()
