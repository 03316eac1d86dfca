"""A transcriber that hears along: with a cascade, or with a model that writes no transcript itself."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from echosight.conversation import Conversation, OpenTurn
from echosight.engines import Transcriber
from echosight.errors import EngineFailure
from echosight.media import HEARD_HZ, Transcript

BYTES_A_MS = HEARD_HZ * 2 // 1000


class Listener:
    """Gives a transcriber every turn's speech once, and forgets turns that are over."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self._heard: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Conversation id -> turn id -> bytes of its speech that were given."""
        self._settling: set[str] = set()
        self._broken: set[str] = set()
        """Turns that the transcriber failed in: they are heard anew when they are settled, and not before."""

    def knows(self, conversation: Conversation, turn: OpenTurn) -> bool:
        """Whether speech of the turn was given already."""
        return turn.id in self._heard[conversation.id]

    async def hear(self, conversation: Conversation, turn: OpenTurn, pcm: bytes) -> str | None:
        """`pcm` was added to the turn; returns the partial text where it changed."""
        heard = self._heard[conversation.id].get(turn.id)
        if turn.id in self._broken or (heard is not None and heard >= turn.duration_ms * BYTES_A_MS):
            return None
        return await self._give(conversation, turn, turn.pcm if heard is None else pcm)

    async def settle(self, conversation: Conversation, turn: OpenTurn) -> Transcript | None:
        """The transcript of all speech of the turn."""
        if not turn.duration_ms:
            return None
        self._settling.add(turn.id)
        try:
            if turn.id in self._broken:
                await self._forget(conversation.id, turn.id)
            heard = self._heard[conversation.id].get(turn.id, 0)
            if heard < turn.duration_ms * BYTES_A_MS:
                await self._give(conversation, turn, turn.pcm[heard:])
            transcript = await self.transcriber.finish(turn.id)
        except EngineFailure:
            # Asked again, it is all heard anew.
            await self._forget(conversation.id, turn.id)
            raise
        finally:
            self._settling.discard(turn.id)
        if turn is not conversation.open:
            await self._forget(conversation.id, turn.id)
        return transcript

    async def tidy(self, conversation: Conversation) -> None:
        """Forget the turns that are over."""
        current = conversation.open.id if conversation.open is not None else None
        for turn_id in [*self._heard[conversation.id]]:
            if turn_id != current and turn_id not in self._settling:
                await self._forget(conversation.id, turn_id)

    async def release(self, conversation_id: str) -> None:
        for turn_id in self._heard.pop(conversation_id, {}):
            self._broken.discard(turn_id)
            await self.transcriber.forget(turn_id)

    async def _give(self, conversation: Conversation, turn: OpenTurn, new: bytes) -> str | None:
        heard = self._heard[conversation.id]
        heard[turn.id] = heard.get(turn.id, 0) + len(new)
        try:
            return await self.transcriber.hear(turn.id, new, conversation.language, conversation.id)
        except asyncio.CancelledError:
            # Half heard is not heard: asked again, it is all given anew.
            await self._forget(conversation.id, turn.id)
            raise
        except EngineFailure:
            self._broken.add(turn.id)
            raise

    async def _forget(self, conversation_id: str, turn_id: str) -> None:
        self._broken.discard(turn_id)
        if self._heard[conversation_id].pop(turn_id, None) is not None:
            await self.transcriber.forget(turn_id)
