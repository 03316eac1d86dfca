"""How many responses an engine generates at once, over all clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from echosight.errors import EngineFull

WAIT_S = 10.0
"""How long a request waits for a slot before it is refused."""


class GenerationSlots:
    """Permits to generate, `capacity` of them. Waiting requests are served in the order of their arrival."""

    def __init__(self, capacity: int, wait_s: float = WAIT_S) -> None:
        self.capacity = capacity
        self.wait_s = wait_s
        self._permits = asyncio.Semaphore(capacity)

    @property
    def full(self) -> bool:
        """Whether a request would have to wait."""
        return self._permits.locked()

    async def acquire(self) -> None:
        """Take a slot; `release` gives it back. Raises `EngineFull` where none is free within `wait_s` seconds."""
        try:
            async with asyncio.timeout(self.wait_s):
                await self._permits.acquire()
        except TimeoutError:
            raise EngineFull("All response slots are in use") from None

    def release(self) -> None:
        self._permits.release()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """A slot for as long as the context lasts. Raises `EngineFull` as `acquire`."""
        await self.acquire()
        try:
            yield
        finally:
            self.release()
