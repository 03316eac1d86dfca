"""The events that wait for one client: bounded, and able to forget the rest of a cancelled response."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from echosight.events import (
    Delta,
    Input,
    Output,
    ResponseEnded,
    ResponseStarted,
    SpeechDelta,
    TextDelta,
    ToolCallDelta,
    TranscriptUpdated,
)

Observer = Callable[[Input | Output], None]

HIGH_WATER_BYTES = 192 * 1024
"""Size of the deltas that may wait: four seconds of 24 kHz speech."""

MAX_EVENTS = 1024
"""Announcements that may wait. A client that leaves more unread does not read at all."""


def _weight(event: Output) -> int:
    match event:
        case SpeechDelta(chunk=chunk):
            return len(chunk.pcm) + 64
        case TextDelta() | ToolCallDelta():
            return 64
        case _:
            return 0


class Outbox:
    """A queue from one session to its one reader.

    Deltas wait for space (`put`), so a slow reader holds back its own response and nobody else's. Announcements of
    state never wait (`push`); when `MAX_EVENTS` of them are unread, the outbox overflows and closes. `observers` see
    every event when it is added.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._events: deque[Output] = deque()
        self._weight = 0
        self._readable: asyncio.Future[None] | None = None
        self._blocked_writers: deque[asyncio.Future[None]] = deque()
        self.closed = False
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: Output) -> None:
        """Add an announcement at once."""
        self._notify_observers(event)
        if self.closed:
            return
        if isinstance(event, TranscriptUpdated) and self._events and self._supersedes(event, self._events[-1]):
            self._events.pop()
        if len(self._events) >= MAX_EVENTS:
            self.overflowed = True
            self.close()
            return
        self._append(event)

    async def put(self, event: Output) -> None:
        """Add a delta as soon as there is space for it."""
        self._notify_observers(event)
        while self._weight >= HIGH_WATER_BYTES and not self.closed:
            space: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._blocked_writers.append(space)
            await space
        if not self.closed:
            self._append(event)

    def drop_response(self, response_id: str) -> None:
        """Forget the deltas of a response that were not read yet."""
        self._filter(lambda event: not (isinstance(event, Delta) and event.response_id == response_id))

    def skip_to_latest_response(self) -> None:
        """For a reader that comes late: keep only the latest response, and that only if it was not cancelled."""
        started = [event.response_id for event in self._events if isinstance(event, ResponseStarted)]
        cancelled = {
            event.response_id
            for event in self._events
            if isinstance(event, ResponseEnded) and event.outcome == "cancelled"
        }
        latest = started[-1] if started and started[-1] not in cancelled else None
        self._filter(lambda event: latest is not None and getattr(event, "response_id", None) == latest)

    def close(self) -> None:
        """Accept no more events. Those that wait can still be read."""
        self.closed = True
        self._wake_reader()
        self._wake_writers()

    async def get(self) -> Output | None:
        """The next event; None once closed and empty. For one reader at a time."""
        while not self._events:
            if self.closed:
                return None
            self._readable = asyncio.get_running_loop().create_future()
            try:
                await self._readable
            finally:
                self._readable = None
        event = self._events.popleft()
        self._weight -= _weight(event)
        if self._weight < HIGH_WATER_BYTES:
            self._wake_writers()
        return event

    def _notify_observers(self, event: Output) -> None:
        for observe in self._observers:
            observe(event)

    @staticmethod
    def _supersedes(new: TranscriptUpdated, old: Output) -> bool:
        return isinstance(old, TranscriptUpdated) and old.item_id == new.item_id and not old.transcript.final

    def _append(self, event: Output) -> None:
        self._events.append(event)
        self._weight += _weight(event)
        self._wake_reader()

    def _filter(self, wanted: Callable[[Output], bool]) -> None:
        self._events = deque(event for event in self._events if wanted(event))
        self._weight = sum(map(_weight, self._events))
        self._wake_writers()

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def _wake_writers(self) -> None:
        while self._blocked_writers:
            space = self._blocked_writers.popleft()
            if not space.done():
                space.set_result(None)
