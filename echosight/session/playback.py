"""What a response says, when each word is spoken, and how much of it the client can have played."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from echosight.conversation import AudioPart
from echosight.media import Word

ROUNDING_MS = 1.0
"""Speech is resampled before it is sent: what was sent of it may be a sample shorter than what was made."""

KEPT_TRACKERS = 8
"""Responses whose playback a client may still report or truncate to the word."""


@dataclass(frozen=True, slots=True)
class PlaybackState:
    """A tracker at rest, for a snapshot: what was made, sent and played of a response by now."""

    text: str
    words: tuple[Word, ...]
    duration_ms: float
    text_complete: bool
    sent_ms: float
    sent_chars: int
    played_ms: float


class PlaybackTracker:
    """Text and speech of one assistant item: what was made, what was sent, and what was played.

    Text may run ahead of speech until the response is complete. What the client has played is what it reported, or else
    what it can have played: the speech that was sent, but no more of it than the time since the first piece was sent.
    Times are in ms from the first sample of the response; `now` is a clock reading in seconds.
    """

    def __init__(self, text: str = "", words: Iterable[Word] = (), duration_ms: float = 0.0) -> None:
        self.text = text
        self.words = list(words)
        self.duration_ms = duration_ms
        self.text_complete = False
        """Whether all the text is known, so that the end of the speech is the end of the text."""
        self.sent_ms = 0.0
        self.sent_chars = 0
        self._first_sent_at: float | None = None
        self._reported_ms: float | None = None

    @classmethod
    def of_part(cls, audio: AudioPart) -> Self:
        """A tracker of speech that was made long ago, as far as its item still knows it."""
        tracker = cls(audio.transcript or "", audio.words, audio.duration_ms)
        tracker.text_complete = True
        return tracker

    @classmethod
    def from_state(cls, state: PlaybackState) -> Self:
        """A tracker that goes on from a snapshot; what was played by then counts as reported by the client."""
        tracker = cls(state.text, state.words, state.duration_ms)
        tracker.text_complete = state.text_complete
        tracker.sent_ms, tracker.sent_chars = state.sent_ms, state.sent_chars
        tracker._reported_ms = state.played_ms
        return tracker

    def state(self, now: float) -> PlaybackState:
        return PlaybackState(
            self.text,
            tuple(self.words),
            self.duration_ms,
            self.text_complete,
            self.sent_ms,
            self.sent_chars,
            self.played_ms(now),
        )

    def add_text(self, text: str) -> None:
        """The response goes on with `text`."""
        self.text += text

    def add_audio(self, duration_ms: float, words: Iterable[Word]) -> None:
        """`duration_ms` more of speech were made; `words` begin in it."""
        self.duration_ms += duration_ms
        self.words.extend(words)

    def mark_text_sent(self, text: str) -> None:
        self.sent_chars += len(text)

    def mark_audio_sent(self, duration_ms: float, now: float) -> None:
        if self._first_sent_at is None:
            self._first_sent_at = now
        self.sent_ms += duration_ms

    def report_played(self, ms: float) -> None:
        """The client reports how much it has played; it cannot have played more than it was sent."""
        self._reported_ms = min(ms, self.sent_ms)

    def played_ms(self, now: float) -> float:
        """How much of the speech the client has played, or can have played by now."""
        if self._reported_ms is not None:
            return self._reported_ms
        if self._first_sent_at is None:
            return 0.0
        return min(self.sent_ms, (now - self._first_sent_at) * 1000)

    def buffered_ms(self, now: float) -> float:
        """Speech that was made and cannot have been played yet."""
        if self._first_sent_at is None:
            return self.duration_ms
        return self.duration_ms - (now - self._first_sent_at) * 1000

    def is_playing(self, now: float) -> bool:
        """Whether the client may still have speech of it to play."""
        return self.duration_ms > 0 and self.played_ms(now) < self.duration_ms - ROUNDING_MS

    def text_until(self, ms: float) -> str:
        """The text whose words have begun before `ms`; a word that begins at `ms` has not begun."""
        if ms >= self.duration_ms - ROUNDING_MS and self.text_complete:
            return self.text
        if not self.words:
            return self._text_in_proportion(ms)
        begun = bisect_left(self.words, ms, key=lambda word: word.start_ms)
        return self.text[: self.words[begun - 1].text_end] if begun else ""

    def truncated_at(self, ms: float) -> AudioPart:
        """The speech up to `ms`, with the words that begin in it."""
        ms = min(ms, self.duration_ms)
        words = self.words[: bisect_left(self.words, ms, key=lambda word: word.start_ms)]
        return AudioPart(None, duration_ms=round(ms), transcript=self.text_until(ms), words=tuple(words))

    def _text_in_proportion(self, ms: float) -> str:
        """For a TTS without word times: as much of the text as of the speech, in whole words."""
        end = int(len(self.text) * min(ms / self.duration_ms, 1.0)) if self.duration_ms else 0
        return self.text[:end].rpartition(" ")[0]


class RecentPlayback:
    """The trackers of a session's latest spoken items, so that a client may report or truncate them afterwards."""

    def __init__(self, keep: int = KEPT_TRACKERS) -> None:
        self._keep = keep
        self._trackers: dict[str, PlaybackTracker] = {}

    def add(self, item_id: str, tracker: PlaybackTracker) -> None:
        self._trackers[item_id] = tracker
        while len(self._trackers) > self._keep:
            del self._trackers[next(iter(self._trackers))]

    def get(self, item_id: str) -> PlaybackTracker | None:
        return self._trackers.get(item_id)

    def states(self, now: float) -> dict[str, PlaybackState]:
        """All trackers at rest, by item id, oldest first."""
        return {item_id: tracker.state(now) for item_id, tracker in self._trackers.items()}

    def restore(self, states: dict[str, PlaybackState]) -> None:
        for item_id, state in states.items():
            self.add(item_id, PlaybackTracker.from_state(state))
