"""Engines without a model: one that tests write the script of, and one that costs what a benchmark says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from echosight.conversation import AudioPart, Conversation, OpenTurn, Part
from echosight.engines import Piece, SpeechPiece, Summary, TextPiece
from echosight.errors import EngineFailure
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

Script = Callable[[Conversation, GenerateOptions], Sequence[Piece]]

HELLO = (TextPiece("Hello "), TextPiece("there."))


class FakeEngine:
    """An `Engine` that answers by script and remembers what was asked of it.

    `answer` is what every answer consists of, or makes it. Before each piece it awaits `step()`, so a test holds
    it with a gate; `fail_at` breaks it before that piece. `steps` counts the pieces begun, `stopped` the answers
    that were closed before their end.
    """

    name = "fake"

    def __init__(
        self,
        answer: Sequence[Piece] | Script = HELLO,
        *,
        transcript: str | Transcript | None = "hello",
        step: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0),
        fail_at: int | None = None,
        capacity: int = 4,
        output_rate: int = 24_000,
        voices: tuple[str, ...] = ("fake",),
    ) -> None:
        self.answer = answer
        self.transcript = Transcript(transcript) if isinstance(transcript, str) else transcript
        self.step = step
        self.fail_at = fail_at
        self.capacity = capacity
        self.output_rate = output_rate
        self.voices = voices
        self.started = self.closed = False
        self.prefilled: list[tuple[str, Part]] = []
        self.settled: list[tuple[str, str]] = []
        self.asked: list[tuple[Conversation, GenerateOptions]] = []
        self.released: list[str] = []
        self.steps = self.stopped = 0

    async def start(self) -> None:
        self.started = True

    async def close(self) -> None:
        self.closed = True

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        self.prefilled.append((conversation.id, part))
        return self.transcript.text if self.transcript and isinstance(part, AudioPart) else None

    async def settle(self, conversation: Conversation, turn: OpenTurn) -> Transcript | None:
        self.settled.append((conversation.id, turn.id))
        return self.transcript

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Piece]:
        self.asked.append((conversation, options))
        pieces = self.answer(conversation, options) if callable(self.answer) else self.answer
        complete = False
        try:
            for n, piece in enumerate(pieces):
                self.steps += 1
                await self.step()
                if n == self.fail_at:
                    raise EngineFailure("The fake engine was told to fail")
                yield piece
            complete = True
        finally:
            self.stopped += not complete

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)

    def heard(self, conversation_id: str) -> bytes:
        """All speech of a conversation that it was prefilled with."""
        parts = (part for owner, part in self.prefilled if owner == conversation_id)
        return b"".join(part.pcm or b"" for part in parts if isinstance(part, AudioPart))


def spoken(text: str, *, rate: int = 24_000, word_ms: int = 200) -> list[Piece]:
    """An answer of `text` with a piece of speech for each word, for scripts."""
    pieces: list[Piece] = [TextPiece(text)]
    end = 0
    for n, word in enumerate(text.split()):
        end = text.index(word, end) + len(word)
        pieces.append(SpeechPiece(bytes(2 * rate * word_ms // 1000), (Word(n * word_ms, end),)))
    return pieces


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

    async def settle(self, conversation: Conversation, turn: OpenTurn) -> Transcript | None:
        return STUB_TRANSCRIPT

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Piece]:
        clock = asyncio.get_running_loop()
        began = clock.time()
        ends = []
        end = 0
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(began + (n + 1) * STUB_TOKEN_S - clock.time())
            text = f" {word}" if n else word
            end += len(text)
            ends.append(end)
            yield TextPiece(text)
        for n in range(STUB_PIECES if options.speech else 0):
            words = (Word(n * STUB_PIECE_MS, ends[n * 2 // 5]),) if n * 2 % 5 < 2 else ()
            yield SpeechPiece(self._pcm, words)
        yield Summary(made_by=(self.name,))

    async def release(self, conversation_id: str) -> None:
        """It keeps nothing."""
