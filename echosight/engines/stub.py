"""Engines without a model: one that tests write the script of, and one that costs what a benchmark says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions


def words(text: str, ms_a_word: int = 100) -> list[Chunk]:
    """An answer at 24 kHz whose every word lasts `ms_a_word`: its text first, then a piece of speech a word."""
    pieces: list[Chunk] = [TextChunk(text)]
    end = 0
    for number, word in enumerate(text.split(" ")):
        end = text.index(word, end) + len(word)
        pcm = b"\x20\x20" * (24 * ms_a_word)
        pieces.append(SpeechChunk(pcm, (Word(number * ms_a_word, end),)))
    return pieces


@dataclass
class FakeEngine:
    """An `Engine` that follows a script and remembers what was asked of it.

    It answers each turn with the next of `answers`, and hears the next of `transcripts`, the last ones again and
    again; an exception among them is raised there. With a `gate`, every piece waits for a permit. `steps` counts the
    pieces begun, `stopped` the answers that are over, to their end or before.
    """

    answers: Sequence[Sequence[Chunk | Exception]] = field(default_factory=lambda: [words("hello there")])
    transcripts: Sequence[str | Exception | None] = ("what was said",)
    gate: asyncio.Semaphore | None = None
    name: str = "fake"
    capacity: int = 8
    output_rate: int = 24_000
    voices: tuple[str, ...] = ("one",)
    stt: STT | None = None
    llm: LLM | None = None
    tts: TTS | None = None
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
        assert conversation.pending_turn is not None
        self.prefilled.append(part)
        return f"{len(self.prefilled)} parts"

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        await asyncio.sleep(0)
        self.settled.append(turn.duration_ms)
        found = self.transcripts[min(len(self.settled), len(self.transcripts)) - 1]
        if isinstance(found, Exception):
            raise found
        return None if found is None else Transcript(found)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
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
            if not any(isinstance(piece, GenerationSummary) for piece in script):
                yield GenerationSummary(providers=(self.name,))
        finally:
            self.stopped += 1

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)


STUB_TRANSCRIPT = Transcript("he was not an ill disposed young man")
STUB_TEXT = "the quick brown fox jumps over the lazy dog and then it runs through the green field until evening falls."
STUB_TOKEN_S = 0.010
STUB_PIECES = 50
STUB_PIECE_MS = 40


class StubEngine:
    """The work of a cascade for load tests, without its computing: the transcript at once, twenty tokens of text
    over 200 ms, then two seconds of speech at 24 kHz in pieces of 40 ms."""

    name = "stub"
    capacity = 1000
    output_rate = 24_000
    voices: tuple[str, ...] = ("stub",)
    stt: STT | None = None
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(self) -> None:
        samples = self.output_rate * STUB_PIECE_MS // 1000
        # Never zero, so that a client can tell it from silence.
        self._pcm = b"\x10\x01\xf0\xfe" * (samples // 2)

    async def start(self) -> None:
        """It is always ready."""

    async def close(self) -> None:
        """It holds nothing."""

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        return None

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        return STUB_TRANSCRIPT

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        clock = asyncio.get_running_loop()
        began = clock.time()
        ends = []
        end = 0
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(began + (n + 1) * STUB_TOKEN_S - clock.time())
            text = f" {word}" if n else word
            end += len(text)
            ends.append(end)
            yield TextChunk(text)
        for n in range(STUB_PIECES if options.speech else 0):
            words = (Word(n * STUB_PIECE_MS, ends[n * 2 // 5]),) if n * 2 % 5 < 2 else ()
            yield SpeechChunk(self._pcm, words)
        yield GenerationSummary(providers=(self.name,))

    async def release(self, conversation_id: str) -> None:
        """It keeps nothing."""
