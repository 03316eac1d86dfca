"""Splits a reply, while it streams, into sentences for the TTS, each with its position in the reply."""

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
"""A shorter sentence ("Yes.") is spoken with the next one, except at the start: there, latency matters more than
prosody."""

MIN_FIRST_CLAUSE_CHARS = 24
"""The first sentence may be cut at a comma once it is that long."""

MAX_CHARS = 240
"""A longer sentence is cut at its last clause or space."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text` begins at character `start` of the reply."""

    start: int
    text: str


class SentenceSplitter:
    """Takes the reply's deltas and returns the sentences that are complete; `flush` returns the rest."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        self._first = True

    def push(self, delta: str) -> list[Sentence]:
        """The sentences that `delta` completes."""
        self._text += delta
        sentences = []
        while (end := self._cut()) is not None:
            sentences += self._take(end)
        return sentences

    def flush(self) -> list[Sentence]:
        """The reply is complete: its last sentence, none where nothing in it can be spoken."""
        return self._take(len(self._text))

    def _cut(self) -> int | None:
        """Index after the first complete sentence, None while that may go on."""
        for match in _END.finditer(self._text):
            end = match.end()
            if self._long_enough(end) and _really_ends(self._text[: match.start()], match[0]):
                return end if end <= MAX_CHARS else _shorten(self._text)
        if self._first:
            for match in _CLAUSE.finditer(self._text):
                if match.end() >= MIN_FIRST_CLAUSE_CHARS:
                    return match.end()
        return _shorten(self._text) if len(self._text) > MAX_CHARS else None

    def _long_enough(self, end: int) -> bool:
        # One CJK character carries about as much speech as three Latin ones.
        return self._first or sum(3 if ord(c) > 0x2E80 else 1 for c in self._text[:end].strip()) >= MIN_CHARS

    def _take(self, end: int) -> list[Sentence]:
        """Remove the text up to `end`; it is a sentence where something of it is spoken."""
        text, self._text = self._text[:end], self._text[end:]
        start = self._start + len(text) - len(text.lstrip())
        self._start += end
        if not any(c.isalnum() for c in strip_markup(text)):
            return []
        self._first = False
        return [Sentence(start, text.strip())]


def _really_ends(before: str, stop: str) -> bool:
    """False where the full stop belongs to an abbreviation, an initial or the number of a list entry."""
    if not stop.startswith(".") or stop.startswith(".."):
        return True
    word = re.split(r"[\s(\[\"'“‘]", before)[-1]
    if word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word):
        return False
    line = before.rpartition("\n")[2].strip()
    return not (word.isdigit() and line == word)


def _shorten(text: str) -> int:
    """Index after the last clause or space within `MAX_CHARS`."""
    clauses = [m.end() for m in _CLAUSE.finditer(text, 0, MAX_CHARS)]
    if clauses and clauses[-1] >= MAX_CHARS // 2:
        return clauses[-1]
    space = text.rfind(" ", 1, MAX_CHARS)
    return space + 1 if space > 0 else MAX_CHARS


_MARKUP = re.compile(r"\[BEEP\]|[*_#`~|<>\\]|[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F\u200D]")


def strip_markup(text: str) -> str:
    """The text with a space for each character of Markdown, each emoji and each ``[BEEP]``, at which a small device
    plays a tone. All other characters keep their index."""
    return _MARKUP.sub(lambda match: " " * len(match[0]), text)
