"""A wire is one client dialect: messages become input events, output events become messages.

A wire does no I/O, reads no clock and starts no task, so a test can write a whole dialogue as a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from echosight.events import Input, Output

__all__ = [
    "Message",
    "Wire",
]

Message = str | bytes


class Wire(Protocol):
    """One connection's dialect. It keeps no session options: the session answers each change with all of them."""

    client_event_id: str | None
    """The client's own id of the message that was received last, for the error that it may cause."""

    def greet(self) -> Iterable[Message]:
        """Messages that begin each connection, also one that resumes a session; none in most dialects."""

    def receive(self, message: Message) -> Iterable[Input]:
        """The inputs of a text or binary message.

        Raises `WireError`, or `InputError` for media that cannot be read; then the message has no effect.
        """

    def send(self, event: Output) -> Iterable[Message]:
        """The messages that an event becomes; none where the dialect has no message for it."""
