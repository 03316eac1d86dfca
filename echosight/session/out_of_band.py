"""Answers out of band: made beside the conversation's own, to a copy of it or to other input, and kept nowhere."""

from __future__ import annotations

import asyncio

from echosight.conversation import Conversation, UserTurn
from echosight.engines import Engine
from echosight.errors import InputError
from echosight.options import GenerateOptions
from echosight.session.generation import ResponseGenerator
from echosight.session.response import Response
from echosight.session.user_turn import UserInput

MAX_OUT_OF_BAND = 4
"""Answers out of band that a session may have at once: each takes a conversation's room in the engine."""


class OutOfBandResponses:
    """The answers out of band that are being made. Speech does not interrupt them; they are cancelled by name."""

    def __init__(
        self, engine: Engine, conversation: Conversation, hearing: UserInput, maker: ResponseGenerator
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._hearing = hearing
        self._maker = maker
        self._made: dict[str, tuple[Response, asyncio.Task[None]]] = {}

    def check_room(self) -> None:
        """Raises `InputError` where no more can be made at once."""
        if sum(not answer.ended for answer, _ in self._made.values()) >= MAX_OUT_OF_BAND:
            raise InputError(
                f"Session already has {MAX_OUT_OF_BAND} active responses out of band",
                code="conversation_already_has_active_response",
                status=429,
            )
        if self._maker.full:
            raise InputError("The engine makes all the answers that it can", code="engine_full", status=503)

    def get(self, turn: str) -> Response | None:
        return self._made[turn][0] if turn in self._made else None

    def begin(self, answer: Response, aside: Conversation, options: GenerateOptions) -> None:
        """Answer `aside`, a conversation of its own."""
        task = asyncio.create_task(self._work(answer, aside, options), name=f"out of band {answer.turn}")
        self._made[answer.turn] = answer, task
        task.add_done_callback(lambda _: self._made.pop(answer.turn, None))

    async def cancel(self, turn: str) -> bool:
        """Stop one of them; False where there is none of that name, or it has ended already."""
        if turn not in self._made or self._made[turn][0].ended:
            return False
        await self._maker.stop(*self._made[turn], "client_cancelled")
        return True

    async def close(self) -> None:
        """Stop them all; those that have ended may still be forgotten by the engine, and are waited for."""
        for turn, (_, task) in [*self._made.items()]:
            if not await self.cancel(turn):
                await asyncio.wait([task])

    async def _work(self, answer: Response, aside: Conversation, options: GenerateOptions) -> None:
        try:
            await self.understand(aside)
            answer.mark("transcript")
            await self._maker.make(answer, aside, options)
            self._maker.end(answer, "completed")
        except Exception as error:
            self._maker.fail(answer, error)
        finally:
            await self._engine.release(aside.id)

    async def understand(self, aside: Conversation) -> None:
        """Bring the items that it shares with the conversation up to date, and have its other speech transcribed."""
        await self._hearing.transcribed()
        for at, item in enumerate(aside.items):
            aside.items[at] = self._conversation.get(item.id) or item
            if aside.items[at].needs_transcript:
                transcript = await self._engine.finalize_transcript(aside, UserTurn.from_item(item))
                if transcript is not None:
                    aside.transcribed(item.id, transcript.text)
