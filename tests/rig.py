"""A session on a bench: a voice detector that hears loudness, an engine that follows a script, a clock set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from echosight.conversation import Conversation, OpenTurn, Part
from echosight.engines import Piece, SpeechPiece, Summary, TextPiece
from echosight.events import Audio, Output, TurnEnded
from echosight.media import HEARD_HZ, AudioChunk, Transcript, Word
from echosight.options import GenerateOptions, SessionOptions, TurnOptions
from echosight.session import Session
from echosight.turns import VoiceStream

WINDOW_MS = 32


class LoudnessVoice(VoiceStream):
    """Loud is speech: windows with any sample but zero have probability 1."""

    def __init__(self) -> None: ...

    def probability(self, window: bytes) -> asyncio.Future[float]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        loop.call_soon(answer.set_result, 1.0 if any(window) else 0.0)
        return answer


def loud(ms: int) -> Audio:
    return Audio(AudioChunk(b"\x10\x10" * (HEARD_HZ * ms // 1000)))


def quiet(ms: int) -> Audio:
    return Audio(AudioChunk(bytes(2 * HEARD_HZ * ms // 1000)))


def words(text: str, ms_a_word: int = 100) -> list[Piece]:
    """An answer whose every word lasts `ms_a_word`: its text first, then a piece of speech a word."""
    pieces: list[Piece] = [TextPiece(text)]
    end = 0
    for number, word in enumerate(text.split(" ")):
        end = text.index(word, end) + len(word)
        pcm = b"\x20\x20" * (24 * ms_a_word)
        pieces.append(SpeechPiece(pcm, (Word(number * ms_a_word, end),)))
    return pieces


@dataclass
class Script:
    """An engine that answers each turn with the next of `answers` (the last one again and again).

    With a `gate`, every piece waits for a permit. An exception among the pieces is raised there.
    """

    answers: Sequence[Sequence[Piece | Exception]] = field(default_factory=lambda: [words("hello there")])
    transcripts: Sequence[str | Exception | None] = ("what was said",)
    gate: asyncio.Semaphore | None = None
    name: str = "script"
    capacity: int = 8
    output_rate: int = 24_000
    voices: tuple[str, ...] = ("one",)
    prefilled: list[Part] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    asked: list[Conversation] = field(default_factory=list)
    options: list[GenerateOptions] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    steps: int = 0
    stopped: int = 0

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        assert conversation.open is not None
        self.prefilled.append(part)
        return f"{len(self.prefilled)} parts"

    async def settle(self, conversation: Conversation, turn: OpenTurn) -> Transcript | None:
        await asyncio.sleep(0)
        self.settled.append(turn.duration_ms)
        found = self.transcripts[min(len(self.settled), len(self.transcripts)) - 1]
        if isinstance(found, Exception):
            raise found
        return None if found is None else Transcript(found)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Piece]:
        self.asked.append(replace(conversation, items=list(conversation.items)))
        self.options.append(options)
        script = self.answers[min(len(self.asked), len(self.answers)) - 1]
        try:
            for piece in script:
                if self.gate is not None:
                    await self.gate.acquire()
                await asyncio.sleep(0)
                self.steps += 1
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            if not any(isinstance(piece, Summary) for piece in script):
                yield Summary(made_by=(self.name,))
        finally:
            self.stopped += 1

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)


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
    engine: Script
    clock: Clock
    seen: list[Output] = field(default_factory=list)

    async def feed(self, *events: Any) -> None:
        for event in events:
            await self.session.feed(event)

    async def until(self, kind: type[Kind]) -> Kind:
        """Read on until an event of this kind."""
        async with asyncio.timeout(5):
            async for event in self.session.outbox:
                self.seen.append(event)
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"closed before {kind.__name__}")

    async def turn(self) -> TurnEnded:
        return await self.until(TurnEnded)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@asynccontextmanager
async def bench(engine: Script | None = None, **options: Any) -> AsyncGenerator[Bench]:
    """A session with server turn detection; `options` are those of `SessionOptions`."""
    engine = engine or Script()
    clock = Clock()
    chosen = SessionOptions(**{"turn": TurnOptions(silence_ms=384), **options})
    session = Session("s", engine, LoudnessVoice(), chosen, clock=clock)
    try:
        yield Bench(session, engine, clock)
    finally:
        await session.close()


def pieces_of(audio: Audio, ms: int) -> Iterator[Audio]:
    """The same sound in pieces of `ms`."""
    size = 2 * HEARD_HZ * ms // 1000
    for at in range(0, len(audio.chunk.pcm), size):
        yield Audio(AudioChunk(audio.chunk.pcm[at : at + size]))
