"""Responses out of band: generated on a copy of the conversation or on other input, and kept nowhere."""

from __future__ import annotations

import asyncio

from echosight.conversation import Conversation, UserTurn
from echosight.engines import GatedEngine
from echosight.errors import EngineFull, InputError
from echosight.options import GenerateOptions
from echosight.session.generation import ResponseGenerator
from echosight.session.response import Response
from echosight.session.user_turn import UserInput

MAX_OUT_OF_BAND = 4
"""Responses out of band that a session may have at once: each takes a slot of the engine."""


class OutOfBandResponses:
    """The responses out of band that are generated. Speech does not interrupt them; the client cancels them by id."""

    def __init__(
        self, engine: GatedEngine, conversation: Conversation, user_input: UserInput, generator: ResponseGenerator
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._user_input = user_input
        self._generator = generator
        self._running: dict[str, Response] = {}

    def check_capacity(self) -> None:
        """Raises `InputError` or `EngineFull` where no more can be generated at once."""
        if sum(response.generating for response in self._running.values()) >= MAX_OUT_OF_BAND:
            raise InputError(
                f"Session already has {MAX_OUT_OF_BAND} active responses out of band",
                code="conversation_already_has_active_response",
                status=429,
            )
        if self._generator.at_capacity:
            raise InputError("All response slots are in use", code=EngineFull.code, status=503)

    def get(self, response_id: str) -> Response | None:
        return self._running.get(response_id)

    def run(self, response: Response, copy: Conversation, options: GenerateOptions) -> None:
        """Generate a response that was started, on a conversation of its own."""
        response.task = asyncio.create_task(self._run(response, copy, options), name=f"out of band {response.id}")
        self._running[response.id] = response
        response.task.add_done_callback(lambda _: self._running.pop(response.id, None))

    async def cancel(self, response_id: str) -> bool:
        """Cancel one of them; False where there is none of that id, or it is over."""
        response = self._running.get(response_id)
        return response is not None and response.generating and await response.cancel("client_cancelled")

    async def close(self) -> None:
        """Cancel all. Of those that are over, the engine may still release the copy: wait for that, too."""
        for response in [*self._running.values()]:
            if not await self.cancel(response.id) and response.task is not None:
                await asyncio.wait([response.task])

    async def transcribe(self, copy: Conversation) -> None:
        """Bring the items that `copy` shares with the conversation up to date, and transcribe its other speech."""
        await self._user_input.wait_for_transcripts()
        for index, item in enumerate(copy.items):
            copy.items[index] = self._conversation.get(item.id) or item
            if copy.items[index].needs_transcript:
                transcript = await self._engine.finalize_transcript(copy, UserTurn.from_item(item))
                if transcript is not None:
                    copy.set_transcript(item.id, transcript.text)

    async def _run(self, response: Response, copy: Conversation, options: GenerateOptions) -> None:
        try:
            await self.transcribe(copy)
            response.mark("transcript")
            await self._generator.run(response, copy, options)
        except Exception as error:
            self._generator.fail(response, error)
        else:
            response.complete()
        finally:
            await self._generator.release(copy)
