"""Calls and generators in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing

import pytest

from echosight.engines.runtime.worker import Worker


@pytest.fixture
async def worker() -> AsyncGenerator[Worker]:
    worker = Worker("tested")
    yield worker
    await worker.close()


async def test_all_calls_run_in_one_thread_of_that_name(worker: Worker) -> None:
    names = {await worker.call(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1
    assert names.pop().startswith("tested")


async def test_errors_reach_the_caller(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda: 1 // 0)


async def test_a_stream_runs_no_further_than_it_is_read(worker: Worker) -> None:
    begun: list[int] = []
    closed = threading.Event()

    def count() -> Generator[int, None, None]:
        try:
            for n in range(100):
                begun.append(n)
                yield n
        finally:
            closed.set()

    async with aclosing(worker.stream(count)) as numbers:
        assert await anext(numbers) == 0
        assert await anext(numbers) == 1
        assert await worker.call(lambda: list(begun)) == [0, 1]
    assert closed.is_set()
    assert begun == [0, 1]


async def test_a_stream_may_contain_none(worker: Worker) -> None:
    assert [n async for n in worker.stream(lambda: iter_of([1, None, 2]))] == [1, None, 2]


async def test_a_cancelled_reader_leaves_after_the_step_in_progress(worker: Worker) -> None:
    step, go = threading.Event(), threading.Event()
    closed = threading.Event()

    def slow() -> Generator[int, None, None]:
        try:
            while True:
                step.set()
                go.wait(10)
                yield 1
        finally:
            closed.set()

    async def read() -> None:
        async with aclosing(worker.stream(slow)) as numbers:
            async for _ in numbers:
                pass

    reader = asyncio.create_task(read())
    await asyncio.get_running_loop().run_in_executor(None, step.wait)
    reader.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await worker.call(closed.is_set)


async def test_a_closed_worker_starts_again_with_the_next_call(worker: Worker) -> None:
    for _ in range(2):
        thread = await worker.call(threading.current_thread)
        await worker.close()
        await worker.close()
        assert not thread.is_alive()


async def test_a_call_that_close_drops_is_an_error_and_no_cancellation(worker: Worker) -> None:
    running, go = threading.Event(), threading.Event()

    def first() -> int:
        running.set()
        assert go.wait(10)
        return 1

    calls = [asyncio.create_task(worker.call(first)), asyncio.create_task(worker.call(lambda: 2))]
    await asyncio.get_running_loop().run_in_executor(None, running.wait)
    closing = asyncio.create_task(worker.close())
    with pytest.raises(RuntimeError, match="The worker tested was closed"):
        await calls[1]
    go.set()
    assert await calls[0] == 1
    await closing


def iter_of(values: list[int | None]) -> Generator[int | None, None, None]:
    yield from values
