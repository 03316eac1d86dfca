"""Voices that compute in this process: a sentence at a time, in a thread of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import numpy as np

from echosight.engines import SpeechChunk
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.worker import Worker
from echosight.engines.tts.word_timing import spread_words
from echosight.errors import EngineFailure
from echosight.media import Word
from echosight.options import GenerateOptions

PIECE_MS = 60


class LocalModel(Protocol):
    """A loaded model. It is only used in the thread that loaded it."""

    rate: int
    voices: tuple[str, ...]

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """One sentence. Raises RuntimeError, ValueError or MemoryError where the model breaks."""


class LocalTTS:
    """A `TTS`. `build` loads its speaker; until then `rate` is what is expected."""

    def __init__(self, name: str, build: Callable[[], LocalModel], rate: int) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self.rate = rate
        self.voices: tuple[str, ...] = ()
        self._build = build
        self._worker = Worker(name)
        self._speaker: LocalModel

    async def start(self) -> None:
        self._speaker = await self._worker.call(lambda: self.loading.run(self._build))
        self.rate, self.voices = self._speaker.rate, self._speaker.voices

    async def close(self) -> None:
        await self._worker.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises `EngineFailure`."""
        speaker = self._speaker
        try:
            async with aclosing(self._worker.stream(lambda: speaker.synthesize(text, options))) as spoken:
                async for piece in spoken:
                    yield piece
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineFailure(f"The voice {self.name} failed: {error}") from error


def pcm16(wave: Any) -> bytes:
    """Float samples in -1…1, of any shape with one channel, as PCM16; what is louder is clipped."""
    return bytes((np.clip(np.ravel(wave), -1.0, 1.0) * 32_767).astype("<i2").tobytes())


def pieces(text: str, pcm: bytes, rate: int, words: Sequence[Word] = ()) -> Iterator[SpeechChunk]:
    """The speech of `text` in pieces of 60 ms, each with the words that begin in it; the last has all that are left.

    Without `words`, they are spread over the speech by their length.
    """
    size = 2 * (rate * PIECE_MS // 1000)
    rest = list(words or spread_words(text, len(pcm) * 500 // rate))
    for at in range(0, len(pcm), size):
        end_ms = (at + size) * 500 / rate
        last = at + size >= len(pcm)
        begun = tuple(word for word in rest if last or word.start_ms < end_ms)
        del rest[: len(begun)]
        yield SpeechChunk(pcm[at : at + size], begun)
