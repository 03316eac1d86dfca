"""A session on a bench: a voice detector that hears loudness, an engine with a script, a clock set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from echosight.events import Audio, Output, ResponseEnded
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionOptions, TurnDetectionOptions
from echosight.server.engine_host import EngineHost
from echosight.session.session import Session
from echosight.turns.vad import VadStream
from tests.fakes import ScriptedEngine

WINDOW_MS = 32


class LoudnessVad(VadStream):
    """Loud is speech: windows with any sample but zero have probability 1."""

    def __init__(self) -> None: ...

    def probability(self, window: bytes) -> asyncio.Future[float]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        loop.call_soon(answer.set_result, 1.0 if any(window) else 0.0)
        return answer


def loud(ms: int) -> Audio:
    return Audio(AudioChunk(b"\x10\x10" * (INPUT_SAMPLE_RATE * ms // 1000)))


def quiet(ms: int) -> Audio:
    return Audio(AudioChunk(bytes(2 * INPUT_SAMPLE_RATE * ms // 1000)))


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


Kind = TypeVar("Kind")


@dataclass
class Bench:
    """A session, its engine and clock, and all that it has said so far."""

    session: Session
    engine: ScriptedEngine
    clock: Clock
    seen: list[Output] = field(default_factory=list)

    async def feed(self, *events: Any) -> None:
        for event in events:
            await self.session.feed(event)

    async def until(self, kind: type[Kind]) -> Kind:
        """Read on until an event of this kind."""
        async with asyncio.timeout(5):
            async for event in self.session.events():
                self.seen.append(event)
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"closed before {kind.__name__}")

    async def turn(self) -> ResponseEnded:
        return await self.until(ResponseEnded)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@asynccontextmanager
async def bench(engine: ScriptedEngine | None = None, **options: Any) -> AsyncGenerator[Bench]:
    """A session with server turn detection; `options` are those of `SessionOptions`."""
    engine = engine or ScriptedEngine()
    clock = Clock()
    chosen = SessionOptions(**{"turn_detection": TurnDetectionOptions(min_endpointing_delay_ms=384), **options})
    session = Session("s", EngineHost(engine), LoudnessVad(), chosen, clock=clock)
    try:
        yield Bench(session, engine, clock)
    finally:
        await session.close()


def chunks_of(audio: Audio, ms: int) -> Iterator[Audio]:
    """The same audio in chunks of `ms`."""
    size = 2 * INPUT_SAMPLE_RATE * ms // 1000
    for at in range(0, len(audio.chunk.pcm), size):
        yield Audio(AudioChunk(audio.chunk.pcm[at : at + size]))
