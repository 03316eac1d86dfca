"""Chains of parts that replace each other: where one fails, the next goes on with the same turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain
from typing import Generic, TypeVar

from echosight.audio.resampling import Resampler
from echosight.conversation import Conversation
from echosight.engines import LLM, STT, TTS, GenerationSummary, SpeechChunk, STTStream, TextChunk, ToolCallChunk
from echosight.engines.runtime.progress import StartupProgress
from echosight.engines.runtime.retries import TransientError
from echosight.engines.stt import STREAM_CLOSED
from echosight.errors import CannotSee, EngineFailure, SetupError
from echosight.media import Transcript
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)

COOLDOWN_S = 30.0
"""How long a part that failed is not tried, where there are others; longer where its server asks for that."""

LATIN_END = 0x250
"""The first code point after the letters of Latin scripts."""

Part = TypeVar("Part", STT, LLM, TTS)
Result = TypeVar("Result")


class FallbackChain(Generic[Part]):
    """The parts in order of preference. `name` is that of the part that would be tried next."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self.parts: list[Part] = list(parts)
        self._clock = clock
        self._cooldown_ends: dict[int, float] = {}
        self._startup = StartupProgress()

    @property
    def loading(self) -> str:
        """The parts that are not up yet, for people."""
        return str(self._startup)

    @property
    def name(self) -> str:
        return next(self.candidates()).name

    async def start(self) -> None:
        """Start all parts; those that cannot start are removed. Raises the first `SetupError` where none can."""
        outcomes = await asyncio.gather(*map(self._startup.start, self.parts), return_exceptions=True)
        started = []
        for part, outcome in zip(self.parts, outcomes, strict=True):
            if outcome is None:
                started.append(part)
            elif not isinstance(outcome, SetupError):
                raise outcome
            else:
                log.warning("%s is left out: %s", part.name, outcome.message)
                await part.close()
        if not started:
            raise next(outcome for outcome in outcomes if isinstance(outcome, SetupError))
        self.parts = started

    async def close(self) -> None:
        await asyncio.gather(*(part.close() for part in self.parts))

    def candidates(self) -> Iterator[Part]:
        """The parts that have not failed lately, in order; then the others, in case those fail too."""
        yield from sorted(self.parts, key=self.is_cooling)

    def is_cooling(self, part: Part) -> bool:
        """Whether the part has failed lately."""
        return self._cooldown_ends.get(id(part), 0.0) > self._clock()

    def mark_failed(self, part: Part, error: EngineFailure) -> None:
        """Prefer the other parts for a while."""
        log.warning("%s failed (%s); trying the next one", part.name, type(error).__name__)
        retry_after = error.retry_after if isinstance(error, TransientError) else None
        self._cooldown_ends[id(part)] = self._clock() + max(COOLDOWN_S, retry_after or 0.0)

    def mark_ok(self, part: Part) -> None:
        self._cooldown_ends.pop(id(part), None)


class LLMChain(FallbackChain[LLM]):
    """An `LLM`. The next part replaces one that fails before its first text; a reply that has begun just fails."""

    async def prefill(self, conversation: Conversation, text: str) -> None:
        await next(self.candidates()).prefill(conversation, text)

    async def release(self, conversation_id: str) -> None:
        for part in self.parts:
            await part.release(conversation_id)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Raises the failure of the last candidate."""
        candidates = list(self.candidates())
        for part in candidates:
            begun = False
            try:
                async with aclosing(part.generate(conversation, options)) as chunks:
                    async for chunk in chunks:
                        if isinstance(chunk, GenerationSummary):
                            chunk = replace(chunk, providers=(part.name,))
                        else:
                            begun = True
                        yield chunk
                self.mark_ok(part)
                return
            except CannotSee:
                # It has not failed: it still replies to requests without images.
                if part is candidates[-1]:
                    raise
            except EngineFailure as error:
                self.mark_failed(part, error)
                if begun or part is candidates[-1]:
                    raise


class STTChain(FallbackChain[STT]):
    """An `STT`. A stream whose part fails goes on with the next part, which gets all of its audio."""

    def open(self, language: str | None = None, speaker: str | None = None) -> STTChainStream:
        return STTChainStream(self, language, speaker)


class STTChainStream:
    """An `STTStream` that keeps the audio, so that it can replay it to another part of `chain`."""

    def __init__(self, chain: STTChain, language: str | None, speaker: str | None) -> None:
        self._chain = chain
        self._language = language
        self._speaker = speaker
        self._pcm = bytearray()
        self._sent = 0
        """How many bytes of it the current part has."""
        self._current: tuple[STT, STTStream] | None = None
        self._closed = False

    async def push(self, pcm: bytes) -> str | None:
        """Raises the failure of the last candidate."""
        self._check_open()
        self._pcm += pcm
        return await self._with_failover(self._send)

    async def finalize(self) -> Transcript:
        """The transcript names the part as its `provider`. Raises the failure of the last candidate."""
        self._check_open()
        return await self._with_failover(self._finalize) if self._pcm else Transcript("")

    async def close(self) -> None:
        self._closed = True
        await self._close_current()

    async def _send(self, part: STT, stream: STTStream) -> str | None:
        pcm = bytes(self._pcm[self._sent :])
        partial = await stream.push(pcm)
        self._sent += len(pcm)
        return partial

    async def _finalize(self, part: STT, stream: STTStream) -> Transcript:
        if self._sent < len(self._pcm):
            await self._send(part, stream)
        transcript = await stream.finalize()
        self._chain.mark_ok(part)
        return replace(transcript, provider=part.name)

    async def _with_failover(self, call: Callable[[STT, STTStream], Awaitable[Result]]) -> Result:
        """The result of `call` with the current part, or with the first candidate that does not fail."""
        tried: list[STT] = []
        while True:
            part, stream = self._current or self._open_next(tried)
            self._current = part, stream
            try:
                return await call(part, stream)
            except EngineFailure as error:
                self._check_open()
                self._chain.mark_failed(part, error)
                await self._close_current()
                tried.append(part)
                if len(tried) == len(self._chain.parts):
                    raise

    def _open_next(self, tried: list[STT]) -> tuple[STT, STTStream]:
        self._sent = 0
        part = next(part for part in self._chain.candidates() if part not in tried)
        return part, part.open(self._language, self._speaker)

    async def _close_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            await current[1].close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)


class TTSChain(FallbackChain[TTS]):
    """A `TTS` at the rate of the first part. The next part replaces one that fails before its first sound.

    Where the first part speaks some languages only, the chain also has the voices of the others, and a part that does
    not have the requested voice or language is tried after those that do.
    """

    def __init__(self, parts: Sequence[TTS], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(parts, clock)
        self.rate = parts[0].rate
        self.voices = self._voices()
        self.languages: tuple[str, ...] = ()

    async def start(self) -> None:
        await super().start()
        self.rate, self.voices = self.parts[0].rate, self._voices()

    def _voices(self) -> tuple[str, ...]:
        """Each name once: a name that two parts have is the first one's voice."""
        first, *others = self.parts
        names = first.voices if not first.languages else chain(first.voices, *(part.voices for part in others))
        return tuple(dict.fromkeys(names))

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises the failure of the last candidate."""
        candidates = sorted(self.parts, key=lambda part: (self.is_cooling(part), not self._suits(part, text, options)))
        for part in candidates:
            begun = False
            try:
                async with aclosing(self._synthesize_with(part, text, options)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                self.mark_ok(part)
                return
            except EngineFailure as error:
                self.mark_failed(part, error)
                if begun or part is candidates[-1]:
                    raise

    def _suits(self, part: TTS, text: str, options: GenerateOptions) -> bool:
        """Whether the part has the requested voice; where no part has it, whether it speaks the language.

        Where no language is known, a part of some languages does not suit text in other scripts than theirs, the Latin.
        """
        if options.voice in self.voices:
            return options.voice in part.voices
        if not part.languages:
            return True
        language = (options.language or "").lower().partition("-")[0]
        return language in part.languages if language else not _is_foreign_script(text)

    async def _synthesize_with(self, part: TTS, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        if options.voice not in part.voices and (part is not self.parts[0] or options.voice in self.voices):
            # It is the name of another part's voice.
            options = replace(options, voice=None)
        resampler = Resampler(part.rate, self.rate)
        async with aclosing(part.synthesize(text, options)) as chunks:
            async for chunk in chunks:
                yield replace(chunk, pcm=resampler.push(chunk.pcm), provider=part.name)
        if rest := resampler.push(b"", last=True):
            yield SpeechChunk(rest, provider=part.name)


def _is_foreign_script(text: str) -> bool:
    """Whether most letters of the text are not Latin."""
    letters = [character for character in text if character.isalpha()]
    return sum(ord(letter) >= LATIN_END for letter in letters) > len(letters) / 2
