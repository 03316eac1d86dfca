"""A guard against answering oneself: a turn that only repeats what the answer was saying just then is its echo."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from echosight.conversation import Item
from echosight.session.playback import PlaybackTracker

BEFORE_MS = 1_000
"""A word that began so long before speech was noticed can be part of it: the word itself, the room, the way back."""

AFTER_MS = 500
"""What had left for the loudspeaker when the answer was cut still sounds for so long."""

REPEATED = 0.75
"""Share of a turn's words that must be the answer's; of up to three words that is all of them."""

_ALIKE = 0.8
_MAX_WORDS = 400
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


class EchoGuard:
    """Knows what was being played when speech began, and so which turns are its echo.

    Only words that sounded during the turn count: whoever repeats a word of the answer later, as one does when asked
    "tea or coffee", means it.
    """

    def __init__(self) -> None:
        self._over: tuple[str, PlaybackTracker, float] | None = None

    def speech_began(self, item_id: str, ledger: PlaybackTracker | None, now: float) -> None:
        """The user's turn `item_id` begins; `ledger` is that of the latest answer."""
        self._over = (item_id, ledger, ledger.heard_ms(now)) if ledger is not None and ledger.playing(now) else None

    def is_echo(self, item: Item) -> bool:
        """Whether the user's turn only repeats what the answer said meanwhile. Asked once a turn."""
        if self._over is None or self._over[0] != item.id or item.audio is None:
            return False
        (_, ledger, heard_ms), self._over = self._over, None
        begun = ledger.text_until(max(0.0, heard_ms - BEFORE_MS))
        played = ledger.text_until(heard_ms + item.audio.duration_ms + AFTER_MS)[len(begun) :]
        return repeats(item.audio.transcript or "", played)


def repeats(said: str, played: str) -> bool:
    """Whether `REPEATED` of the words of `said` occur in `played` in the same order, as recognisers spell them."""
    mine, theirs = _words(said), _words(played)
    return bool(mine) and _in_common(mine, theirs) >= REPEATED * len(mine)


def _words(text: str) -> list[str]:
    """Words without case and punctuation; where words are not separated, characters."""
    return _WORDS.findall(text.casefold())[:_MAX_WORDS]


def _in_common(mine: list[str], theirs: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(theirs) + 1)
    for word in mine:
        left = diagonal = 0
        for at, other in enumerate(theirs, 1):
            above = row[at]
            left = diagonal + 1 if _alike(word, other) else max(left, above)
            row[at], diagonal = left, above
    return row[-1]


def _alike(word: str, other: str) -> bool:
    if word == other or min(len(word), len(other)) < 4:
        return word == other
    return SequenceMatcher(None, word, other, autojunk=False).ratio() >= _ALIKE
