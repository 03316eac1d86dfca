"""EngineHost: the one engine of the server, and the only way to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, Engine, SpeechChunk
from echosight.engines.slots import WAIT_S, GenerationSlots
from echosight.errors import EngineFull, InputError, SetupError
from echosight.media import Transcript
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)


class EngineHost:
    """A `GatedEngine`: starts the engine and lets no more than `engine.capacity` requests generate at once.

    Sessions and plain endpoints share the slots. A request that gets none within `slot_wait_s` seconds is refused with
    `EngineFull`.
    """

    def __init__(self, engine: Engine, slot_wait_s: float = WAIT_S) -> None:
        self.ready = False
        self.load_error: SetupError | None = None
        self.load_finished = asyncio.Event()
        """Set once the engine is ready or has failed to load."""
        self.slots = GenerationSlots(engine.capacity, slot_wait_s)
        self._engine = engine
        self._reserved: set[str] = set()
        """Conversations that hold a slot which their next `generate` takes over."""

    # --- what the engine is ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    @property
    def output_rate(self) -> int:
        return self._engine.output_rate

    @property
    def voices(self) -> tuple[str, ...]:
        return self._engine.voices

    @property
    def stt(self) -> STT | None:
        return self._engine.stt

    @property
    def llm(self) -> LLM | None:
        return self._engine.llm

    @property
    def tts(self) -> TTS | None:
        return self._engine.tts

    @property
    def loading(self) -> str:
        """What is being loaded and how much of it is done, for people; empty where the engine does not tell."""
        return str(getattr(self._engine, "loading", ""))

    @property
    def at_capacity(self) -> bool:
        return self.slots.full

    # --- start and end --------------------------------------------------------------------------

    async def load(self) -> None:
        """Start the engine and note the outcome in `ready` or `load_error`. Raises nothing but `CancelledError`."""
        try:
            await self.start()
            self.ready = True
            log.info("%s is ready", self.name)
        except SetupError as error:
            self.load_error = error
            log.error("%s", error.message)
        except Exception as error:
            self.load_error = SetupError(f"{self.name} failed to start ({type(error).__name__}); the log says where")
            log.exception("%s failed to start", self.name)
        finally:
            self.load_finished.set()

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.close()

    def require_ready(self) -> None:
        """Raises `EngineFull` while the engine loads, and where it could not be loaded."""
        if not self.ready:
            raise EngineFull(self.load_error.message if self.load_error else "The engine is loading", retry_after=2)

    # --- work without a slot --------------------------------------------------------------------

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        return await self._engine.prefill(conversation, part)

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        return await self._engine.finalize_transcript(conversation, turn)

    async def release(self, conversation_id: str) -> None:
        await self._engine.release(conversation_id)

    async def transcribe(self, turn: UserTurn, language: str | None = None) -> Transcript | None:
        """The transcript of a recording; None where the engine makes none. The caller holds one of the `slots`.

        Raises `EngineFailure`.
        """
        if not turn.duration_ms:
            return Transcript("")
        conversation = Conversation(language=language)
        try:
            return await self._engine.finalize_transcript(conversation, turn)
        finally:
            await self._engine.release(conversation.id)

    # --- work that takes a slot -----------------------------------------------------------------

    @asynccontextmanager
    async def reserve(self, conversation_id: str) -> AsyncIterator[None]:
        """Take a slot early; the next `generate` of the conversation uses it. Raises `EngineFull`.

        So a request can be refused before the first byte of its response is sent.
        """
        await self.slots.acquire()
        self._reserved.add(conversation_id)
        try:
            yield
        finally:
            if self._take_reserved(conversation_id):
                self.slots.release()

    def _take_reserved(self, conversation_id: str) -> bool:
        reserved = conversation_id in self._reserved
        self._reserved.discard(conversation_id)
        return reserved

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """As `Engine.generate`. Raises `EngineFull` where no slot is free in time."""
        if not self._take_reserved(conversation.id):
            await self.slots.acquire()
        try:
            async with aclosing(self._engine.generate(conversation, options)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.slots.release()

    async def synthesize(self, sentences: Iterable[str], options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Speak sentences one after the other, at `output_rate`.

        Raises `InputError` (501) where the engine has no TTS, `EngineFull` and `EngineFailure`.
        """
        tts = self._engine.tts
        if tts is None:
            raise InputError("This engine has no text-to-speech", code="unsupported", status=501)
        async with self.slots.hold():
            for sentence in sentences:
                async with aclosing(tts.synthesize(sentence, options)) as chunks:
                    async for chunk in chunks:
                        yield chunk
