"""Generating a response: the engine's chunks, one by one, into the outbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from echosight.conversation import Conversation
from echosight.engines import GatedEngine
from echosight.errors import EchoSightError
from echosight.events import Delta, SpeechDelta
from echosight.options import GenerateOptions
from echosight.session.outbox import Outbox
from echosight.session.response import Response

log = logging.getLogger(__name__)


class ResponseGenerator:
    """Runs the engine for one session's responses, each in the response's own task."""

    def __init__(self, session_id: str, engine: GatedEngine, outbox: Outbox, clock: Callable[[], float]) -> None:
        self._session_id = session_id
        self._engine = engine
        self._outbox = outbox
        self._clock = clock

    @property
    def at_capacity(self) -> bool:
        """Whether every slot of the engine is in use."""
        return self._engine.at_capacity

    @property
    def output_rate(self) -> int:
        return self._engine.output_rate

    async def run(self, response: Response, conversation: Conversation, options: GenerateOptions) -> None:
        """Generate the response as soon as the engine has a slot. Errors are raised; the caller ends the response.

        The outbox is full while its reader is slow, and then the engine is not asked for its next chunk.
        """
        async with aclosing(self._engine.generate(conversation, options)) as chunks:
            async for chunk in chunks:
                if (delta := response.add(chunk)) is not None:
                    await self._pace(response, delta, options.max_playout_lead_ms)
                    await self._outbox.put(delta)
        if (rest := response.flush()) is not None:
            await self._outbox.put(rest)

    def fail(self, response: Response, error: Exception) -> None:
        """Fail the response. EchoSightError messages go to the client; other exceptions are hidden and logged."""
        if isinstance(error, EchoSightError):
            log.warning("response failed: %s session=%s response=%s", error.code, self._session_id, response.id)
            response.end("failed", error.code, error.message)
        else:
            log.error("response failed session=%s response=%s", self._session_id, response.id, exc_info=error)
            response.end("failed", "engine_failed", "The engine failed")

    async def release(self, conversation: Conversation) -> None:
        """Have the engine forget a conversation that was a copy for one response."""
        await self._engine.release(conversation.id)

    async def _pace(self, response: Response, delta: Delta, max_lead_ms: int | None) -> None:
        """Hold speech back until the client has at most `max_lead_ms` of it to play."""
        if max_lead_ms is not None and isinstance(delta, SpeechDelta):
            early_ms = response.playback.buffered_ms(self._clock()) - max_lead_ms
            if early_ms > 0:
                await asyncio.sleep(early_ms / 1000)
