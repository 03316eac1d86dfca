"""Steps of all answers in progress, merged: one call into the model's thread moves all whose readers keep up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from echosight.engines import Chunk
from echosight.errors import EngineFailure

A = TypeVar("A")

Step = Callable[[Sequence[A]], Awaitable[list[list[Chunk]]]]


class Lane(Generic[A]):
    """An answer on its way to its reader. It moves once the reader has taken what came before: a step ahead at most."""

    def __init__(self, answer: A) -> None:
        self.answer = answer
        self.pieces: list[Chunk] = []
        self.error: Exception | None = None
        self.ended = False
        self.news = asyncio.Event()

    @property
    def ready(self) -> bool:
        return not (self.pieces or self.ended or self.error)


class Rounds(Generic[A]):
    """Runs `step` for all lanes that are ready, over and over. `ended` tells whether an answer is over."""

    def __init__(self, step: Step[A], ended: Callable[[A], bool]) -> None:
        self._step = step
        self._ended = ended
        self._lanes: list[Lane[A]] = []
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; the engine owns the task. Answers that are still read then fail."""
        try:
            await self._run()
        finally:
            self._fail(self._lanes, EngineFailure("The engine was closed"))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            # The readers of the last round come first: who is quick to read takes part in every round.
            await asyncio.sleep(0)
            ready = [lane for lane in self._lanes if lane.ready]
            if not ready:
                await self._wake.wait()
                continue
            await self._round(ready)

    async def read(self, answer: A) -> AsyncGenerator[Chunk]:
        """The answer's pieces, to its end. Raises what its step raised."""
        lane = Lane(answer)
        self._lanes.append(lane)
        self._wake.set()
        try:
            while True:
                await lane.news.wait()
                lane.news.clear()
                pieces, lane.pieces = lane.pieces, []
                self._wake.set()
                for piece in pieces:
                    yield piece
                if lane.error is not None:
                    raise lane.error
                if lane.ended and not lane.pieces:
                    return
        finally:
            self._lanes.remove(lane)

    async def _round(self, lanes: list[Lane[A]]) -> None:
        try:
            pieces = await self._step([lane.answer for lane in lanes])
        except Exception as error:
            self._fail(lanes, error)
            return
        for lane, new in zip(lanes, pieces, strict=True):
            lane.pieces += new
            lane.ended = self._ended(lane.answer)
            if new or lane.ended:
                lane.news.set()

    def _fail(self, lanes: Sequence[Lane[A]], error: Exception) -> None:
        for lane in lanes:
            lane.error = error
            lane.news.set()
