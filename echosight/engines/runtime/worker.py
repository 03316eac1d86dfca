"""One thread that owns one in-process model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Runs calls one after another in a thread of its own. The thread starts with the first call after a `close`."""

    def __init__(self, name: str = "model") -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    async def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, run in the thread.

        A caller that is cancelled leaves it running and drops its result. Raises RuntimeError where `close` dropped
        the call before it ran.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, self._name)
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise RuntimeError(f"The worker {self._name} was closed") from None
            raise

    async def stream(self, start: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T]:
        """Run a generator in the thread, one step for each chunk that the reader takes.

        A slow reader holds back its own stream and no other. Closing closes the generator after the step
        in progress, and returns when that is done.
        """
        steps = await self.call(start)
        end = object()
        try:
            while (chunk := await self.call(lambda: next(steps, end))) is not end:
                yield chunk  # type: ignore[misc]
        finally:
            # In the thread, so after a step that a cancelled reader left running.
            await asyncio.shield(self.call(steps.close))

    async def close(self) -> None:
        """Wait for the call in progress, drop those that wait, end the thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(None, lambda: executor.shutdown(cancel_futures=True))
