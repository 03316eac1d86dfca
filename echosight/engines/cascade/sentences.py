"""A reply, as it streams, cut into what can be spoken: sentences, with their place in the reply."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WIDE_STOPS = "。！？｡…⋯"
_CLOSERS = "\"'”’»›)]}」』）】〉》*_"
_END = re.compile(
    rf"(?:[.!?…]+[{re.escape(_CLOSERS)}]*(?=\s)|[{_WIDE_STOPS}]+[{re.escape(_CLOSERS)}]*|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s))"
)
_CLAUSE = re.compile(r"[,;:—–](?=\s)|[，、；：]")
_SHORT = """
mr mrs ms dr prof sr jr st vs etc e.g i.e cf al vol fig approx dept est inc ltd co corp gen col sgt capt lt rev hon
jan feb mar apr jun jul aug sep sept oct nov dec z.b d.h bzw usw ca nr bspw evtl mme mlle sra
"""
_INITIALS = re.compile(r"(?!I$)[^\W\d_](?:\.[^\W\d_])*")
_ABBREVIATIONS = frozenset(_SHORT.split())

MIN_CHARS = 12
"""A shorter sentence ("Yes.") waits for the next one, except at the start, where time counts more than prosody."""

FIRST_CLAUSE_CHARS = 24
"""The first piece may end at a comma once it is that long."""

MAX_CHARS = 240
"""What is longer is cut at the last clause or space."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text` stands at character `start` of the reply."""

    start: int
    text: str


class Splitter:
    """Feed it deltas; it gives the sentences that are complete, and in `finish` the rest."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        self._first = True

    def feed(self, delta: str) -> list[Sentence]:
        self._text += delta
        sentences = []
        while (cut := self._cut()) is not None:
            sentences += self._take(cut)
        return sentences

    def finish(self) -> list[Sentence]:
        """Whatever is left, where there is anything to say in it."""
        return self._take(len(self._text))

    def _cut(self) -> int | None:
        """Where the first complete sentence ends, None while it may go on."""
        for match in _END.finditer(self._text):
            end = match.end()
            if self._long_enough(end) and _really_ends(self._text[: match.start()], match[0]):
                return end if end <= MAX_CHARS else _shorten(self._text)
        if self._first:
            for match in _CLAUSE.finditer(self._text):
                if match.end() >= FIRST_CLAUSE_CHARS:
                    return match.end()
        return _shorten(self._text) if len(self._text) > MAX_CHARS else None

    def _long_enough(self, end: int) -> bool:
        said = self._text[:end].strip()
        # A wide character says about as much as three narrow ones.
        return self._first or sum(3 if ord(c) > 0x2E80 else 1 for c in said) >= MIN_CHARS

    def _take(self, cut: int) -> list[Sentence]:
        piece, self._text = self._text[:cut], self._text[cut:]
        start = self._start + len(piece) - len(piece.lstrip())
        self._start += cut
        if not any(c.isalnum() for c in speakable(piece)):
            return []
        self._first = False
        return [Sentence(start, piece.strip())]


def _really_ends(before: str, stop: str) -> bool:
    """Not where the point belongs to an abbreviation, an initial or the number of a list entry."""
    if not stop.startswith(".") or stop.startswith(".."):
        return True
    word = re.split(r"[\s(\[\"'“‘]", before)[-1]
    if word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word):
        return False
    line = before.rpartition("\n")[2].strip()
    return not (word.isdigit() and line == word)


def _shorten(text: str) -> int:
    """The last clause end or space within `MAX_CHARS`."""
    clauses = [m.end() for m in _CLAUSE.finditer(text, 0, MAX_CHARS)]
    if clauses and clauses[-1] >= MAX_CHARS // 2:
        return clauses[-1]
    space = text.rfind(" ", 1, MAX_CHARS)
    return space + 1 if space > 0 else MAX_CHARS


_UNSPOKEN = re.compile(r"\[BEEP\]|[*_#`~|<>\\]|[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F\u200D]")


def speakable(text: str) -> str:
    """The text without marks and pictures that nobody would read aloud, and without the token ``[BEEP]``, at which a
    device plays a tone; every character keeps its place."""
    return _UNSPOKEN.sub(lambda match: " " * len(match[0]), text)
