"""How many responses an engine generates at once, over all who ask for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from echosight.errors import EngineFull

WAIT_S = 10.0
"""How long a request waits for a slot before it is refused."""


class GenerationSlots:
    """Permits to generate, `capacity` of them. Requests that wait are served in the order in which they came."""

    def __init__(self, capacity: int, wait_s: float = WAIT_S) -> None:
        self.capacity = capacity
        self.wait_s = wait_s
        self._permits = asyncio.Semaphore(capacity)

    @property
    def full(self) -> bool:
        """Whether a request would have to wait."""
        return self._permits.locked()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """A slot for as long as the context lasts. Raises `EngineFull` where none is free within `wait_s` seconds."""
        try:
            async with asyncio.timeout(self.wait_s):
                await self._permits.acquire()
        except TimeoutError:
            raise EngineFull("All response slots are in use") from None
        try:
            yield
        finally:
            self._permits.release()
