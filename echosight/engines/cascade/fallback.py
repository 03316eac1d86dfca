"""Parts that stand in for each other: when one fails, the next goes on with the same turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from echosight.audio.resampling import Resampler
from echosight.conversation import Conversation
from echosight.engines import LLM, STT, TTS, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.engines.runtime.progress import StartupProgress
from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)

REST_S = 30.0
"""How long a part that failed is passed over before it is tried again; longer, where it asks for that."""

Part = TypeVar("Part", STT, LLM, TTS)
Result = TypeVar("Result")


class _Chain(Generic[Part]):
    """The parts in order of preference. `name` is that of the one whose turn it is."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self.parts: list[Part] = list(parts)
        self._clock = clock
        self._resting: dict[int, float] = {}
        self._roll = StartupProgress()

    @property
    def loading(self) -> str:
        return str(self._roll)

    @property
    def name(self) -> str:
        return next(self.able()).name

    async def start(self) -> None:
        """Start all; those that cannot are left out. Raises `SetupError` where none can."""
        outcomes = await asyncio.gather(*map(self._roll.start, self.parts), return_exceptions=True)
        able = []
        for part, outcome in zip(self.parts, outcomes, strict=True):
            if outcome is None:
                able.append(part)
            elif not isinstance(outcome, SetupError):
                raise outcome
            else:
                log.warning("%s is left out: %s", part.name, outcome.message)
                await part.close()
        if not able:
            raise next(outcome for outcome in outcomes if isinstance(outcome, SetupError))
        self.parts = able

    async def close(self) -> None:
        await asyncio.gather(*(part.close() for part in self.parts))

    def able(self) -> Iterator[Part]:
        """Those that did not fail lately, in order; then the others, for there may be nobody else."""
        now = self._clock()
        resting = [part for part in self.parts if self._resting.get(id(part), 0.0) > now]
        yield from (part for part in self.parts if part not in resting)
        yield from resting

    def failed(self, part: Part, error: EngineFailure) -> None:
        log.warning("%s failed (%s); the next in line takes over", part.name, type(error).__name__)
        asked = error.retry_after if isinstance(error, TransientError) else None
        self._resting[id(part)] = self._clock() + max(REST_S, asked or 0.0)

    def worked(self, part: Part) -> None:
        self._resting.pop(id(part), None)


class LLMChain(_Chain[LLM]):
    """A `LLM`. A reply is begun by the first that can; one that breaks off later is not begun again by another."""

    async def prefill(self, conversation: Conversation, text: str) -> None:
        await next(self.able()).prefill(conversation, text)

    async def release(self, conversation_id: str) -> None:
        for part in self.parts:
            await part.release(conversation_id)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Raises the failure of the last in line."""
        line = list(self.able())
        for part in line:
            begun = False
            try:
                async with aclosing(part.generate(conversation, options)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, GenerationSummary):
                            piece = replace(piece, providers=(part.name,))
                        else:
                            begun = True
                        yield piece
                self.worked(part)
                return
            except EngineFailure as error:
                self.failed(part, error)
                if begun or part is line[-1]:
                    raise


@dataclass(slots=True)
class _Utterance:
    """All that was said, for whoever takes over, and how many bytes of it the current part was told."""

    part: STT
    language: str | None
    speaker: str | None
    pcm: bytearray = field(default_factory=bytearray)
    told: int = 0


class STTChain(_Chain[STT]):
    """A `STT`. Who takes over an utterance is told all of it."""

    def __init__(self, parts: Sequence[STT], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(parts, clock)
        self._utterances: dict[str, _Utterance] = {}

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """Raises the failure of the last in line."""
        said = self._utterances.get(utterance)
        if said is None:
            said = self._utterances[utterance] = _Utterance(next(self.able()), language, speaker)
        said.pcm += pcm
        return await self._relay(utterance, said, self._tell)

    async def finish(self, utterance: str) -> Transcript:
        """Raises the failure of the last in line."""
        said = self._utterances.get(utterance)
        if said is None:
            raise EngineFailure("The transcriber heard nothing of this turn")
        return await self._relay(utterance, said, self._finish)

    async def forget(self, utterance: str) -> None:
        if (said := self._utterances.pop(utterance, None)) is not None:
            await said.part.forget(utterance)

    async def _tell(self, utterance: str, said: _Utterance) -> str | None:
        news = bytes(said.pcm[said.told :])
        if not news:
            return None
        partial = await said.part.hear(utterance, news, said.language, said.speaker)
        said.told += len(news)
        return partial

    async def _finish(self, utterance: str, said: _Utterance) -> Transcript:
        await self._tell(utterance, said)
        transcript = await said.part.finish(utterance)
        self.worked(said.part)
        return replace(transcript, provider=said.part.name)

    async def _relay(
        self, utterance: str, said: _Utterance, work: Callable[[str, _Utterance], Awaitable[Result]]
    ) -> Result:
        """Have the work done, by the next in line where a part fails."""
        tried: list[STT] = []
        while True:
            try:
                return await work(utterance, said)
            except EngineFailure as error:
                self.failed(said.part, error)
                await said.part.forget(utterance)
                tried.append(said.part)
                said.told = 0
                successor = next((part for part in self.able() if part not in tried), None)
                if successor is None:
                    raise
                said.part = successor


class TTSChain(_Chain[TTS]):
    """A `TTS` at the rate of the first. A sentence is begun by the first that can."""

    def __init__(self, parts: Sequence[TTS], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(parts, clock)
        self.rate = parts[0].rate
        self.voices = parts[0].voices

    async def start(self) -> None:
        await super().start()
        self.rate, self.voices = self.parts[0].rate, self.parts[0].voices

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Raises the failure of the last in line."""
        line = list(self.able())
        for part in line:
            begun = False
            try:
                async with aclosing(self._speak(part, text, options)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                self.worked(part)
                return
            except EngineFailure as error:
                self.failed(part, error)
                if begun or part is line[-1]:
                    raise

    async def _speak(self, part: TTS, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        if part is not self.parts[0] and options.voice not in part.voices:
            # The name is that of another's voice.
            options = replace(options, voice=None)
        resampler = Resampler(part.rate, self.rate)
        async with aclosing(part.synthesize(text, options)) as pieces:
            async for piece in pieces:
                yield replace(piece, pcm=resampler.push(piece.pcm), provider=part.name)
        if rest := resampler.push(b"", last=True):
            yield SpeechChunk(rest, provider=part.name)
