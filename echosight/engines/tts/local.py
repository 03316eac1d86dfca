"""TTS models in this process: they compute one sentence at a time, in a thread of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import Protocol

from echosight.engines import SpeechChunk
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.worker import Worker
from echosight.engines.tts.word_timing import spread_words
from echosight.errors import EngineFailure
from echosight.media import Word, pcm_ms
from echosight.options import GenerateOptions

CHUNK_MS = 60


class LocalModel(Protocol):
    """A loaded model. Only the thread that loaded it calls it."""

    rate: int
    voices: tuple[str, ...]

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """One sentence, see `TTS.synthesize`. Raises RuntimeError, ValueError or MemoryError where the model fails."""


class LocalTTS:
    """A `TTS`. `build` loads its model; until then, `rate` is the expected one in Hz."""

    def __init__(self, name: str, build: Callable[[], LocalModel], rate: int) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self.rate = rate
        self.voices: tuple[str, ...] = ()
        self._build = build
        self._worker = Worker(name)
        self._model: LocalModel | None = None

    async def start(self) -> None:
        self._model = await self._worker.call(lambda: self.loading.run(self._build))
        self.rate, self.voices = self._model.rate, self._model.voices

    async def close(self) -> None:
        await self._worker.close()
        self._model = None

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises `EngineFailure`."""
        model = self._model
        if model is None:
            raise EngineFailure(f"{self.name} is not started")
        try:
            async with aclosing(self._worker.stream(lambda: model.synthesize(text, options))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineFailure(f"The TTS {self.name} failed: {error}") from error


def split_into_chunks(text: str, pcm: bytes, rate: int, words: Sequence[Word] = ()) -> Iterator[SpeechChunk]:
    """The speech of `text` in chunks of 60 ms, each with the words that begin in it; the last has all that are left.

    Without `words`, they are spread over the speech by their length. Words that begin later than the speech ends are
    moved to its end.
    """
    size = 2 * (rate * CHUNK_MS // 1000)
    duration_ms = pcm_ms(len(pcm), rate)
    words = words or spread_words(text, duration_ms)
    rest = [Word(min(word.start_ms, duration_ms), word.text_end) for word in words]
    for start in range(0, len(pcm), size):
        end_ms = (start + size) * 500 / rate
        last = start + size >= len(pcm)
        begun = tuple(word for word in rest if last or word.start_ms < end_ms)
        del rest[: len(begun)]
        yield SpeechChunk(pcm[start : start + size], begun)
