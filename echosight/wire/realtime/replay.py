"""The events that were sent, by id, so that a client that lost its socket receives the ones it missed."""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from typing import Any

from echosight.wire.fields import write_json

MAX_DIGITS = 18

KEEP_BYTES = 1 << 20
"""Twelve seconds of speech: more than the buffers of a lost connection can hold."""


class ReplayBuffer:
    """Numbers events and keeps the latest ones, as they were sent: at most `keep_bytes` characters of JSON."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._prefix = f"event_{secrets.token_hex(5)}"
        self._next = 1
        self._response_start = 1
        self._sent: deque[str] = deque()
        self._bytes = 0
        self._keep_bytes = keep_bytes

    def add(self, event: dict[str, Any]) -> str:
        """The event as a JSON message, with an ``event_id`` of its own."""
        message = write_json({"event_id": f"{self._prefix}_{self._next:06d}", **event})
        self._next += 1
        self._sent.append(message)
        self._bytes += len(message)
        while self._bytes > self._keep_bytes:
            self._bytes -= len(self._sent.popleft())
        return message

    def begin_response(self) -> None:
        """A response begins: drop all events from before the previous response."""
        while self._sent and self._next - len(self._sent) < self._response_start:
            self._bytes -= len(self._sent.popleft())
        self._response_start = self._next

    def after(self, event_id: str) -> list[str] | None:
        """All messages that were sent after the event of that id; None where the event is unknown or dropped."""
        prefix, _, number = event_id.rpartition("_")
        if prefix != self._prefix or not number.isdecimal() or len(number) > MAX_DIGITS:
            return None
        missed = self._next - 1 - int(number)
        if not 0 <= missed <= len(self._sent):
            return None
        return list(itertools.islice(self._sent, len(self._sent) - missed, None))
