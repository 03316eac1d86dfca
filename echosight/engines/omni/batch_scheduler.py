"""Merges the steps of all replies in progress: one call into the model's thread advances all whose readers keep up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from echosight.engines import Chunk
from echosight.errors import EngineFailure

R = TypeVar("R")

Step = Callable[[Sequence[R]], Awaitable[list[list[Chunk]]]]


class RequestSlot(Generic[R]):
    """A request in progress. It takes part in a step once its reader has taken all chunks: one step ahead at most."""

    def __init__(self, request: R) -> None:
        self.request = request
        self.chunks: list[Chunk] = []
        self.error: Exception | None = None
        self.ended = False
        self.changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the request takes part in the next step."""
        return not (self.chunks or self.ended or self.error)


class BatchScheduler(Generic[R]):
    """Runs `step` for all requests that are ready, again and again (continuous batching, Orca, Yu et al. 2022).

    `is_done` says whether a request is complete.
    """

    def __init__(self, step: Step[R], is_done: Callable[[R], bool]) -> None:
        self._step = step
        self._is_done = is_done
        self._slots: list[RequestSlot[R]] = []
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Runs until cancelled, in a task that the engine owns. Requests still in progress then fail."""
        try:
            await self._run()
        finally:
            self._fail(self._slots, EngineFailure("The engine was closed"))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            # Let the readers of the last step run first, so that fast readers take part in every step.
            await asyncio.sleep(0)
            ready = [slot for slot in self._slots if slot.ready]
            if not ready:
                await self._wake.wait()
                continue
            await self._step_slots(ready)

    async def stream(self, request: R) -> AsyncGenerator[Chunk]:
        """The request's chunks until it is complete. Raises the exception of its step."""
        slot = RequestSlot(request)
        self._slots.append(slot)
        self._wake.set()
        try:
            while True:
                await slot.changed.wait()
                slot.changed.clear()
                chunks, slot.chunks = slot.chunks, []
                self._wake.set()
                for chunk in chunks:
                    yield chunk
                if slot.error is not None:
                    raise slot.error
                if slot.ended and not slot.chunks:
                    return
        finally:
            self._slots.remove(slot)

    async def _step_slots(self, slots: list[RequestSlot[R]]) -> None:
        try:
            results = await self._step([slot.request for slot in slots])
        except Exception as error:
            self._fail(slots, error)
            return
        for slot, chunks in zip(slots, results, strict=True):
            slot.chunks += chunks
            slot.ended = self._is_done(slot.request)
            if chunks or slot.ended:
                slot.changed.set()

    def _fail(self, slots: Sequence[RequestSlot[R]], error: Exception) -> None:
        for slot in slots:
            slot.error = error
            slot.changed.set()
