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


async def test_all_work_is_done_in_one_thread_of_that_name(worker: Worker) -> None:
    names = {await worker.call(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1
    assert names.pop().startswith("tested")


async def test_errors_come_back(worker: Worker) -> None:
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


async def test_a_stream_gives_none_as_any_other_value_and_ends(worker: Worker) -> None:
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


def iter_of(values: list[int | None]) -> Generator[int | None, None, None]:
    yield from values
