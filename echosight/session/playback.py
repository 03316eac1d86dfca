"""The account of one answer: what it says, which words lie at which milliseconds, and how much can have been heard."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Self

from echosight.conversation import AudioPart
from echosight.media import Word

ROUNDING_MS = 1.0
"""Speech is resampled on its way out: what is sent of it may be a sample shorter than what was made."""


class PlaybackTracker:
    """Text and speech of one assistant item, as produced and as sent.

    Text may run ahead of speech until the answer is `complete`. What the client has heard is what it
    acknowledged, or else what it can have played: the speech that was sent, but no more of it than the time
    since its first piece left. Times are in ms from the answer's first sample; clock readings in seconds.
    """

    def __init__(self, text: str = "", words: Iterable[Word] = (), spoken_ms: float = 0.0) -> None:
        self.text = text
        self.words = list(words)
        self.spoken_ms = spoken_ms
        self.complete = False
        self.sent_ms = 0.0
        self.sent_chars = 0
        self._first_sent_at: float | None = None
        self._acknowledged_ms: float | None = None

    @classmethod
    def of(cls, audio: AudioPart) -> Self:
        """The account of speech that was made long ago, as far as its item still knows it."""
        ledger = cls(audio.transcript or "", audio.words, audio.duration_ms)
        ledger.complete = True
        return ledger

    def said(self, text: str) -> None:
        """The answer goes on with `text`."""
        self.text += text

    def spoke(self, ms: float, words: Iterable[Word]) -> None:
        """`ms` more of speech were made; `words` begin in it."""
        self.spoken_ms += ms
        self.words.extend(words)

    def sent_text(self, text: str) -> None:
        self.sent_chars += len(text)

    def sent_speech(self, ms: float, now: float) -> None:
        if self._first_sent_at is None:
            self._first_sent_at = now
        self.sent_ms += ms

    def played(self, ms: float) -> None:
        """The client says how much it has played; it cannot have played what it was not sent."""
        self._acknowledged_ms = min(ms, self.sent_ms)

    def heard_ms(self, now: float) -> float:
        if self._acknowledged_ms is not None:
            return self._acknowledged_ms
        if self._first_sent_at is None:
            return 0.0
        return min(self.sent_ms, (now - self._first_sent_at) * 1000)

    def unplayed_ms(self, now: float) -> float:
        """Speech that was made and cannot have been played yet."""
        if self._first_sent_at is None:
            return self.spoken_ms
        return self.spoken_ms - (now - self._first_sent_at) * 1000

    def playing(self, now: float) -> bool:
        """Whether the client may still have speech of it to play."""
        return self.spoken_ms > 0 and self.heard_ms(now) < self.spoken_ms - ROUNDING_MS

    def text_until(self, ms: float) -> str:
        """The text whose words have begun before `ms`; a word that begins at `ms` has not begun."""
        if ms >= self.spoken_ms - ROUNDING_MS and self.complete:
            return self.text
        if not self.words:
            return self._text_in_proportion(ms)
        begun = bisect_left(self.words, ms, key=lambda word: word.start_ms)
        return self.text[: self.words[begun - 1].text_end] if begun else ""

    def until(self, ms: float) -> AudioPart:
        """What is heard of the speech within `ms` of its beginning."""
        ms = min(ms, self.spoken_ms)
        words = self.words[: bisect_left(self.words, ms, key=lambda word: word.start_ms)]
        return AudioPart(None, duration_ms=round(ms), transcript=self.text_until(ms), words=tuple(words))

    def _text_in_proportion(self, ms: float) -> str:
        """For a voice that gives no word times: as much of the text as of the speech, in whole words."""
        end = int(len(self.text) * min(ms / self.spoken_ms, 1.0)) if self.spoken_ms else 0
        return self.text[:end].rpartition(" ")[0]
