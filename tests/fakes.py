"""Engines and parts of engines that follow a script, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions


def words(text: str, ms_a_word: int = 100) -> list[Chunk]:
    """A response at 24 kHz with words of `ms_a_word` each: first its text, then one chunk of speech per word."""
    chunks: list[Chunk] = [TextChunk(text)]
    end = 0
    for number, word in enumerate(text.split(" ")):
        end = text.index(word, end) + len(word)
        pcm = b"\x20\x20" * (24 * ms_a_word)
        chunks.append(SpeechChunk(pcm, (Word(number * ms_a_word, end),)))
    return chunks


@dataclass
class ScriptedEngine:
    """An `Engine` that follows a script and records its calls.

    Each response is the next of `answers`, each transcript the next of `transcripts`; the last one is repeated. An
    exception in a script is raised at its place. With a `gate`, every chunk waits for a permit. `steps` counts the
    chunks begun, `stopped` the generators that ended or were closed.
    """

    answers: Sequence[Sequence[Chunk | Exception]] = field(default_factory=lambda: [words("hello there")])
    transcripts: Sequence[str | Exception | None] = ("what was said",)
    gate: asyncio.Semaphore | None = None
    name: str = "fake"
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
        assert conversation.pending_turn is not None
        self.prefilled.append(part)
        return f"{len(self.prefilled)} parts"

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        await asyncio.sleep(0)
        self.settled.append(turn.duration_ms)
        text = self.transcripts[min(len(self.settled), len(self.transcripts)) - 1]
        if isinstance(text, Exception):
            raise text
        return None if text is None else Transcript(text)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        self.asked.append(replace(conversation, items=list(conversation.items)))
        self.options.append(options)
        script = self.answers[min(len(self.asked), len(self.answers)) - 1]
        try:
            for chunk in script:
                if self.gate is not None:
                    await self.gate.acquire()
                await asyncio.sleep(0)
                self.steps += 1
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
            if not any(isinstance(chunk, GenerationSummary) for chunk in script):
                yield GenerationSummary(providers=(self.name,))
        finally:
            self.stopped += 1

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)
