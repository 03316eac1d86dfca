"""What waits to be sent to one client: bounded, and able to forget the rest of an interrupted answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from echosight.events import (
    Input,
    Output,
    ResponseEnded,
    ResponseStarted,
    SpeechDelta,
    TextDelta,
    ToolCallDelta,
    TranscriptUpdated,
)

Tap = Callable[[Input | Output], None]

ROOM_BYTES = 192 * 1024
"""Deltas that may wait: four seconds of 24 kHz speech."""

FLOOD_EVENTS = 1024
"""Announcements that may wait. A client that leaves more unread is not reading at all."""


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

    Deltas wait for room (`put`), so a slow reader holds back its own answer and nothing else.
    Announcements of state never wait (`push`); when `FLOOD_EVENTS` of them are unread, the outbox closes.
    `taps` see every event as it is said, `leaving` as the reader takes it.
    """

    def __init__(self, taps: Sequence[Tap] = (), leaving: Callable[[Output], None] | None = None) -> None:
        self._taps = taps
        self._events: deque[Output] = deque()
        self._weight = 0
        self._leaving = leaving
        self._readable: asyncio.Future[None] | None = None
        self._roomy: deque[asyncio.Future[None]] = deque()
        self.closed = False
        self.flooded = False

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: Output) -> None:
        """Add an announcement at once."""
        self._tap(event)
        if self.closed:
            return
        if isinstance(event, TranscriptUpdated) and self._events and self._supersedes(event, self._events[-1]):
            self._events.pop()
        if len(self._events) >= FLOOD_EVENTS:
            self.flooded = True
            self.close()
            return
        self._append(event)

    async def put(self, event: Output) -> None:
        """Add a delta as soon as there is room for it."""
        self._tap(event)
        while self._weight >= ROOM_BYTES and not self.closed:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._roomy.append(room)
            await room
        if not self.closed:
            self._append(event)

    def drop(self, response_id: str) -> None:
        """Forget the deltas of a turn that were not sent."""
        self._keep(
            lambda e: not (isinstance(e, TextDelta | SpeechDelta | ToolCallDelta) and e.response_id == response_id)
        )

    def rewind(self) -> None:
        """For a reader that comes late: keep only the latest turn, and that only if it was not stopped meanwhile."""
        starts = [e.response_id for e in self._events if isinstance(e, ResponseStarted)]
        stopped = {e.response_id for e in self._events if isinstance(e, ResponseEnded) and e.outcome == "cancelled"}
        latest = starts[-1] if starts and starts[-1] not in stopped else None
        self._keep(lambda e: latest is not None and getattr(e, "response_id", None) == latest)

    def close(self) -> None:
        """Take in no more. What waits can still be read."""
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
        if self._weight < ROOM_BYTES:
            self._wake_writers()
        if self._leaving is not None:
            self._leaving(event)
        return event

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (event := await self.get()) is not None:
            yield event

    def _tap(self, event: Output) -> None:
        for tap in self._taps:
            tap(event)

    @staticmethod
    def _supersedes(new: TranscriptUpdated, old: Output) -> bool:
        return isinstance(old, TranscriptUpdated) and old.item_id == new.item_id and not old.transcript.final

    def _append(self, event: Output) -> None:
        self._events.append(event)
        self._weight += _weight(event)
        self._wake_reader()

    def _keep(self, wanted: Callable[[Output], bool]) -> None:
        self._events = deque(e for e in self._events if wanted(e))
        self._weight = sum(map(_weight, self._events))
        self._wake_writers()

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def _wake_writers(self) -> None:
        while self._roomy:
            room = self._roomy.popleft()
            if not room.done():
                room.set_result(None)
