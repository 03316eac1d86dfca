"""What the contract suites share: a running implementation, and checks that hold for all of them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pytest
from PIL import Image

from echosight.engines import GenerationSummary
from echosight.media import ImageFrame, Word
from echosight.options import GenerateOptions

UNKNOWN_LANGUAGE = "tlh-Latn"
DEFAULT_OPTIONS = GenerateOptions()


class Startable(Protocol):
    async def start(self) -> None: ...
    async def close(self) -> None: ...


P = TypeVar("P", bound=Startable)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Running(Generic[P]):
    """A part or an engine.

    `steps` counts the steps of its model or its server, where that can be seen. `incremental`: a long output takes many
    steps, so closing the generator leaves most of them out. `options` are those that the model needs.
    """

    part: P
    steps: Callable[[], int] = lambda: 0
    incremental: bool = False
    options: GenerateOptions = DEFAULT_OPTIONS


Folder = Callable[[str], Path]
"""A folder with the model of that kind."""


@asynccontextmanager
async def plain(part: P, options: GenerateOptions = DEFAULT_OPTIONS) -> AsyncIterator[Running[P]]:
    """A part that needs nothing around it, and whose steps are not seen."""
    yield Running(part, options=options)


def require(*modules: str) -> None:
    """Skip where a package is missing."""
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@asynccontextmanager
async def started(running: Running[P]) -> AsyncIterator[Running[P]]:
    await running.part.start()
    try:
        yield running
    finally:
        await running.part.close()


@contextmanager
def count_forward_calls() -> Iterator[Callable[[], int]]:
    """Counts the calls of all torch modules."""
    import torch

    calls = 0

    def count(module: object, args: object) -> None:
        nonlocal calls
        calls += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield lambda: calls
    finally:
        handle.remove()


async def until_stopped(steps: Callable[[], int]) -> int:
    """Wait until the model takes no more steps; returns how many there were."""
    before = -1
    async with asyncio.timeout(20):
        while (now := steps()) != before:
            before = now
            await asyncio.sleep(0.1)
    return now


async def read_first(chunks: AsyncGenerator[T], wanted: Callable[[T], bool] = lambda _: True) -> None:
    """Read up to the first chunk that is wanted, then close the generator."""
    async with aclosing(chunks):
        async for chunk in chunks:
            if wanted(chunk):
                return
    raise AssertionError("there was no such chunk")


async def cancel_after_first(chunks: AsyncGenerator[T]) -> None:
    """Read in a task, which is cancelled in the middle."""
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(chunks):
            async for _ in chunks:
                begun.set()

    reading = asyncio.create_task(read())
    await asyncio.wait([reading, asyncio.ensure_future(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    reading.cancel()
    await asyncio.wait([reading], timeout=20)
    assert reading.done()


@asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    """Tasks that begin inside end inside."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(20):
        while left := {task for task in asyncio.all_tasks() - before if not task.done()}:
            await asyncio.sleep(0.01)
    assert not left


def check_words(words: Iterable[Word], text: str, duration_ms: int) -> None:
    """In order, in text and time; inside the text, at the end of a word; inside the audio."""
    last = Word(0, 0)
    for word in words:
        assert last.text_end < word.text_end <= len(text)
        assert last.start_ms <= word.start_ms <= duration_ms
        assert not text[word.text_end - 1].isspace()
        assert word.text_end == len(text) or not (text[word.text_end - 1].isalnum() and text[word.text_end].isalnum())
        last = word


def check_summary(chunks: Sequence[object]) -> GenerationSummary:
    """The last chunk is the only summary; its token counts and its finish reason are possible."""
    summary = chunks[-1]
    assert isinstance(summary, GenerationSummary)
    assert not any(isinstance(chunk, GenerationSummary) for chunk in chunks[:-1])
    assert summary.finish in ("stop", "length", "content_filter")
    counts = astuple(summary.usage)
    assert all(isinstance(count, int) and count >= 0 for count in counts)
    usage = summary.usage
    assert usage.cached <= usage.input_text + usage.input_audio + usage.input_image
    return summary


def red_image() -> ImageFrame:
    """A small PNG."""
    data = io.BytesIO()
    Image.new("RGB", (120, 90), "red").save(data, "PNG")
    return ImageFrame(data.getvalue(), "image/png", 120, 90)
