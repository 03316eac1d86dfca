"""What was sent to a client, by event id, so that one that lost its socket gets what it missed."""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from typing import Any

import orjson

MAX_DIGITS = 18

KEEP_BYTES = 1 << 20
"""Twelve seconds of speech: more than a lost connection can have swallowed."""


class ReplayBuffer:
    """Numbers events and keeps the latest ones, as they were sent."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._prefix = f"event_{secrets.token_hex(5)}"
        self._next = 1
        self._answer = 1
        self._sent: deque[str] = deque()
        self._bytes = 0
        self._keep = keep_bytes

    def add(self, event: dict[str, Any]) -> str:
        """The event as a message, under an id of its own."""
        message = orjson.dumps({"event_id": f"{self._prefix}_{self._next:06d}", **event}).decode()
        self._next += 1
        self._sent.append(message)
        self._bytes += len(message)
        while self._bytes > self._keep:
            self._bytes -= len(self._sent.popleft())
        return message

    def begin_answer(self) -> None:
        """An answer begins: of those before it, only the last one is still kept."""
        while self._sent and self._next - len(self._sent) < self._answer:
            self._bytes -= len(self._sent.popleft())
        self._answer = self._next

    def since(self, event_id: str) -> list[str] | None:
        """All that was sent after the event of that id; None where that is no longer known."""
        prefix, _, number = event_id.rpartition("_")
        if prefix != self._prefix or not number.isdecimal() or len(number) > MAX_DIGITS:
            return None
        missed = self._next - 1 - int(number)
        if not 0 <= missed <= len(self._sent):
            return None
        return list(itertools.islice(self._sent, len(self._sent) - missed, None))
