"""A wire is one client dialect: messages to input events, output events to messages.

A wire does no I/O, reads no clock and starts no task, so a whole dialogue can be tested as a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from echosight.events import Input, Output

Message = str | bytes


class Wire(Protocol):
    client_event_id: str | None
    """The client's own id of the message that is being received, to be named in an error."""

    def greet(self) -> Iterable[Message]:
        """Messages that begin each connection, also one that resumes a session; none in most dialects."""

    def receive(self, message: Message) -> Iterable[Input]:
        """The inputs a message stands for. Raises `WireError` if it is not of this dialect; then it has no effect."""

    def send(self, event: Output) -> Iterable[Message]:
        """The messages that tell the client of an event; none where the dialect has no word for it."""
