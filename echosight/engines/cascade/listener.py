"""A transcriber that hears along: with a cascade, or with a model that writes no transcript itself."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from echosight.conversation import Conversation, UserTurn
from echosight.engines import STT
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript

BYTES_A_MS = INPUT_SAMPLE_RATE * 2 // 1000


class Listener:
    """Gives a transcriber every turn's speech once, and forgets turns that are over."""

    def __init__(self, transcriber: STT) -> None:
        self.transcriber = transcriber
        self._heard: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Conversation id -> utterance -> bytes of its speech that were given."""
        self._settling: set[str] = set()
        self._broken: set[str] = set()
        """Utterances that the transcriber failed in: they are heard anew when they are settled, and not before."""

    def knows(self, conversation: Conversation, turn: UserTurn) -> bool:
        """Whether speech of the turn was given already."""
        return _utterance(conversation, turn) in self._heard[conversation.id]

    async def hear(self, conversation: Conversation, turn: UserTurn, pcm: bytes) -> str | None:
        """`pcm` was added to the turn; returns the partial text where it changed."""
        utterance = _utterance(conversation, turn)
        heard = self._heard[conversation.id].get(utterance)
        if utterance in self._broken or (heard is not None and heard >= turn.duration_ms * BYTES_A_MS):
            return None
        return await self._give(conversation, utterance, turn.pcm if heard is None else pcm)

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The transcript of all speech of the turn."""
        if not turn.duration_ms:
            return None
        utterance = _utterance(conversation, turn)
        self._settling.add(utterance)
        try:
            if utterance in self._broken:
                await self._forget(conversation.id, utterance)
            heard = self._heard[conversation.id].get(utterance, 0)
            if heard < turn.duration_ms * BYTES_A_MS:
                await self._give(conversation, utterance, turn.pcm[heard:])
            transcript = await self.transcriber.finish(utterance)
        except EngineFailure:
            # Asked again, it is all heard anew.
            await self._forget(conversation.id, utterance)
            raise
        finally:
            self._settling.discard(utterance)
        if turn is not conversation.pending_turn:
            await self._forget(conversation.id, utterance)
        return transcript

    async def tidy(self, conversation: Conversation) -> None:
        """Forget the turns that are over."""
        current = _utterance(conversation, conversation.pending_turn) if conversation.pending_turn is not None else None
        for utterance in [*self._heard[conversation.id]]:
            if utterance != current and utterance not in self._settling:
                await self._forget(conversation.id, utterance)

    async def release(self, conversation_id: str) -> None:
        for utterance in self._heard.pop(conversation_id, {}):
            self._broken.discard(utterance)
            await self.transcriber.forget(utterance)

    async def _give(self, conversation: Conversation, utterance: str, new: bytes) -> str | None:
        heard = self._heard[conversation.id]
        heard[utterance] = heard.get(utterance, 0) + len(new)
        try:
            return await self.transcriber.hear(utterance, new, conversation.language, conversation.id)
        except asyncio.CancelledError:
            # Half heard is not heard: asked again, it is all given anew.
            await self._forget(conversation.id, utterance)
            raise
        except EngineFailure:
            self._broken.add(utterance)
            raise

    async def _forget(self, conversation_id: str, utterance: str) -> None:
        self._broken.discard(utterance)
        if self._heard[conversation_id].pop(utterance, None) is not None:
            await self.transcriber.forget(utterance)


def _utterance(conversation: Conversation, turn: UserTurn) -> str:
    """Clients name their items as they like, so two conversations may have one of the same name."""
    return f"{conversation.id}/{turn.id}"
