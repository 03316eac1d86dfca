"""An engine without a model, for load tests: it costs the time of a cascade and computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

STUB_TRANSCRIPT = Transcript("he was not an ill disposed young man")
STUB_TEXT = "the quick brown fox jumps over the lazy dog and then it runs through the green field until evening falls."
STUB_TOKEN_S = 0.010
STUB_CHUNKS = 50
STUB_CHUNK_MS = 40


class StubEngine:
    """An `Engine` for load tests: the transcript at once, twenty tokens of text over 200 ms, then two seconds of speech
    at 24 kHz in chunks of 40 ms."""

    name = "stub"
    capacity = 1000
    output_rate = 24_000
    voices: tuple[str, ...] = ("stub",)
    stt: STT | None = None
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(self) -> None:
        samples = self.output_rate * STUB_CHUNK_MS // 1000
        # Never zero, so that a client can distinguish it from silence.
        self._pcm = b"\x10\x01\xf0\xfe" * (samples // 2)

    async def start(self) -> None:
        """There is nothing to load."""

    async def close(self) -> None:
        """There is nothing to free."""

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
        for n in range(STUB_CHUNKS if options.speech else 0):
            words = (Word(n * STUB_CHUNK_MS, ends[n * 2 // 5]),) if n * 2 % 5 < 2 else ()
            yield SpeechChunk(self._pcm, words)
        yield GenerationSummary(providers=(self.name,))

    async def release(self, conversation_id: str) -> None:
        """Nothing is cached."""
