"""How one answer is made and stopped: the engine's pieces, one by one, into the outbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from echosight import events as ev
from echosight.conversation import Conversation
from echosight.engines import GatedEngine
from echosight.errors import EchoSightError
from echosight.options import GenerateOptions
from echosight.session.outbox import Outbox
from echosight.session.response import Response

log = logging.getLogger(__name__)


class ResponseGenerator:
    """Makes answers for one session, each in the task that asks for it, and ends each exactly once."""

    def __init__(self, name: str, engine: GatedEngine, outbox: Outbox, clock: Callable[[], float]) -> None:
        self._name = name
        self._engine = engine
        self._outbox = outbox
        self._clock = clock

    @property
    def full(self) -> bool:
        """Whether the engine makes all the answers that it can."""
        return self._engine.at_capacity

    async def make(self, answer: Response, conversation: Conversation, options: GenerateOptions) -> None:
        """Answer, as soon as the engine has a slot. What goes wrong is raised; the answer is ended by the caller."""
        async with aclosing(self._engine.generate(conversation, options)) as pieces:
            async for piece in pieces:
                news, delta = answer.take(piece)
                for event in news:
                    self._outbox.push(event)
                if delta is not None:
                    await self._pace(answer, delta, options.max_playout_lead_ms)
                    await self._outbox.put(delta)
        if (rest := answer.rest()) is not None:
            await self._outbox.put(rest)

    async def _pace(self, answer: Response, delta: ev.Delta, lead_ms: int | None) -> None:
        if lead_ms is not None and isinstance(delta, ev.SpeechDelta):
            early_ms = answer.ledger.unplayed_ms(self._clock()) - lead_ms
            if early_ms > 0:
                await asyncio.sleep(early_ms / 1000)

    async def stop(self, answer: Response, task: asyncio.Task[None], reason: str) -> None:
        """The one way an answer is stopped: drop what is unsent, cancel, await, cut to what was heard."""
        self._outbox.drop(answer.turn)
        task.cancel()
        try:
            await asyncio.wait([task])
        finally:  # even where the client is lost just now: whoever comes back is told how it ended
            self._outbox.drop(answer.turn)
            if not answer.ended:
                self.end(answer, "cancelled", reason)

    def fail(self, answer: Response, error: Exception) -> None:
        """End an answer that went wrong: with the words of an error that is meant for clients, and none of others."""
        if isinstance(error, EchoSightError):
            log.warning("turn %s of session %s failed: %s", answer.turn, self._name, error.code)
            self.end(answer, "failed", error.code, error.message)
        else:
            log.error("turn %s of session %s failed", answer.turn, self._name, exc_info=error)
            self.end(answer, "failed", "engine_failed", "The engine failed")

    def end(self, answer: Response, outcome: ev.Outcome, reason: str | None = None, error: str | None = None) -> None:
        """Announce that it is over, and what was heard of it."""
        heard_ms = None if outcome == "completed" else answer.ledger.heard_ms(self._clock())
        for event in answer.end(outcome, reason, heard_ms, error):
            self._outbox.push(event)

    def left(self, answer: Response, event: ev.Output) -> None:
        """The outbox's reader took an event of the answer: account for what the client can have heard."""
        match event:
            case ev.SpeechDelta(chunk=chunk):
                answer.ledger.sent_speech(chunk.seconds * 1000, self._clock())
                answer.mark("first_byte")
            case ev.TextDelta(text=text):
                answer.ledger.sent_text(text)
            case _:
                pass
