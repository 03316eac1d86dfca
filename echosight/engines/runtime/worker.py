"""One thread that owns one in-process model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Runs what it is given one after the other, in a thread of its own."""

    def __init__(self, name: str = "model") -> None:
        self._thread = ThreadPoolExecutor(1, name)

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread. A caller that is cancelled meanwhile leaves it running; its result is dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def stream(self, start: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T]:
        """Run a generator in the thread, a step whenever one is asked for.

        A slow reader holds back its own answer and nobody else's. Closing closes the generator after the step
        in progress, and returns when that is done.
        """
        steps = await self.call(start)
        nothing = object()
        try:
            while (item := await self.call(lambda: next(steps, nothing))) is not nothing:
                yield item  # type: ignore[misc]
        finally:
            # In the thread, so behind a step that a cancelled reader left running.
            await asyncio.shield(self.call(steps.close))

    async def close(self) -> None:
        """Wait for what runs, drop what waits, end the thread."""
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._thread.shutdown(cancel_futures=True))
