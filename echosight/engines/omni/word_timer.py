"""When the words of an answer are spoken, as far as the model lets one know."""

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


class WordClock:
    """Spreads the words of the text over the speech.

    The talker says a word some time after it was given the word's token, and it is given one token for each frame of
    codes: that is the earliest a word can begin. From there words follow each other at a speaker's usual pace, and once
    the speech has ended those that are left share what is left of it. An estimate, then, with two hard bounds.
    `frame_ms` is the length of a frame of codes.
    """

    def __init__(self, frame_ms: float) -> None:
        self._frame_ms = frame_ms
        self._text = ""
        self._given: list[tuple[int, int]] = []
        """(characters of text, frame) after each token."""
        self._scanned = 0
        self._waiting: list[tuple[int, int, float]] = []
        """(end, duration in ms, earliest start in ms)."""
        self._free_ms = 0.0

    def give(self, text: str, frame: int) -> None:
        """The text grew by a token that the talker is given at `frame`."""
        self._text += text
        self._given.append((len(self._text), frame))
        self._scan(final=False)

    def spoken(self, start_ms: float, end_ms: float, *, final: bool) -> tuple[Word, ...]:
        """Words that begin in the speech from `start_ms` to `end_ms` of the answer; `final`: there is no more."""
        if final:
            self._scan(final=True)
            return self._share(max(start_ms, self._free_ms), end_ms)
        words = []
        while self._waiting:
            end, duration, earliest = self._waiting[0]
            begin = max(self._free_ms, earliest, start_ms)
            if begin >= end_ms:
                break
            self._waiting.pop(0)
            words.append(Word(int(begin), end))
            self._free_ms = begin + duration
        return tuple(words)

    def _share(self, start_ms: float, end_ms: float) -> tuple[Word, ...]:
        start_ms = min(start_ms, end_ms)
        whole = sum(duration for _, duration, _ in self._waiting)
        words = []
        for end, duration, _ in self._waiting:
            words.append(Word(int(start_ms), end))
            start_ms += (end_ms - start_ms) * duration / whole
            whole -= duration
        self._waiting = []
        return tuple(words)

    def _scan(self, *, final: bool) -> None:
        """Find the words that are complete: something follows them."""
        for match in _WORD.finditer(self._text, self._scanned):
            if match.end() == len(self._text) and not final:
                break
            said = match.group()
            duration = IDEOGRAPH_MS if ord(said[0]) >= 0x2E80 else WORD_MS + LETTER_MS * len(said)
            frame = next((frame for characters, frame in self._given if characters > match.start()), 0)
            self._waiting.append((match.end(), duration, frame * self._frame_ms))
            self._scanned = match.end()
