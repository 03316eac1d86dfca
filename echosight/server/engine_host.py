"""The one engine of the server, and the only gate to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import Chunk, Engine
from echosight.engines.slots import GenerationSlots
from echosight.media import Transcript
from echosight.options import GenerateOptions


class EngineHost:
    """A `GatedEngine`: hands every call on to the engine, and `generate` once one of its slots is free."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.slots = GenerationSlots(engine.capacity)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def capacity(self) -> int:
        return self.engine.capacity

    @property
    def output_rate(self) -> int:
        return self.engine.output_rate

    @property
    def voices(self) -> tuple[str, ...]:
        return self.engine.voices

    @property
    def at_capacity(self) -> bool:
        return self.slots.full

    async def start(self) -> None:
        await self.engine.start()

    async def close(self) -> None:
        await self.engine.close()

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        return await self.engine.prefill(conversation, part)

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        return await self.engine.finalize_transcript(conversation, turn)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `EngineFull` where no slot is free in time."""
        async with self.slots.hold(), aclosing(self.engine.generate(conversation, options)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def release(self, conversation_id: str) -> None:
        await self.engine.release(conversation_id)
