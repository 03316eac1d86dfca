"""A guard against responding to our own voice: a turn that only repeats what was playing just then is its echo."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from echosight.conversation import Item
from echosight.session.playback import PlaybackTracker

BEFORE_MS = 1_000
"""Words that began this long before the VAD noticed speech can be in it: the word itself, the room, the way back."""

AFTER_MS = 500
"""How long the loudspeaker still plays what the client had received when the response was cut."""

REPEATED = 0.75
"""Share of a turn's words that must be the response's; of up to three words that is all of them."""

_MIN_SIMILARITY = 0.8
_MAX_WORDS = 400
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


class EchoGuard:
    """Remembers what was playing when speech began, and so knows which turns are its echo.

    Only words that were played during the turn count: a user who repeats a word of the response later, as one does when
    asked "tea or coffee", means it.
    """

    def __init__(self) -> None:
        self._playing_over: tuple[str, PlaybackTracker, float] | None = None

    def speech_started(self, item_id: str, tracker: PlaybackTracker | None, now: float) -> None:
        """The user's turn `item_id` begins; `tracker` is that of the latest response."""
        playing = tracker is not None and tracker.is_playing(now)
        self._playing_over = (item_id, tracker, tracker.played_ms(now)) if tracker is not None and playing else None

    def is_echo(self, item: Item) -> bool:
        """Whether the user's turn only repeats what was playing meanwhile. Asked once for each turn."""
        if self._playing_over is None or self._playing_over[0] != item.id or item.audio is None:
            return False
        (_, tracker, played_ms), self._playing_over = self._playing_over, None
        before = tracker.text_until(max(0.0, played_ms - BEFORE_MS))
        played = tracker.text_until(played_ms + item.audio.duration_ms + AFTER_MS)[len(before) :]
        return repeats(item.audio.transcript or "", played)


def repeats(transcript: str, played: str) -> bool:
    """Whether `REPEATED` of the transcript's words occur in `played` in the same order, as recognisers spell them."""
    heard, spoken = _words(transcript), _words(played)
    return bool(heard) and _common_subsequence(heard, spoken) >= REPEATED * len(heard)


def _words(text: str) -> list[str]:
    """Words without case and punctuation; where words are not separated, characters."""
    return _WORDS.findall(text.casefold())[:_MAX_WORDS]


def _common_subsequence(heard: list[str], spoken: list[str]) -> int:
    """Length of the longest common subsequence (dynamic programming, one row at a time)."""
    row = [0] * (len(spoken) + 1)
    for word in heard:
        left = diagonal = 0
        for index, other in enumerate(spoken, 1):
            above = row[index]
            left = diagonal + 1 if _similar(word, other) else max(left, above)
            row[index], diagonal = left, above
    return row[-1]


def _similar(word: str, other: str) -> bool:
    if word == other or min(len(word), len(other)) < 4:
        return word == other
    return SequenceMatcher(None, word, other, autojunk=False).ratio() >= _MIN_SIMILARITY
