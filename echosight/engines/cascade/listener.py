"""Transcribes user turns while they go on, for a cascade or for a model that writes no transcript itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from echosight.conversation import Conversation, UserTurn
from echosight.engines import STT, STTStream
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript

BYTES_PER_MS = INPUT_SAMPLE_RATE // 500


@dataclass(slots=True)
class _TurnStream:
    """The stream of one turn. `failed`: the STT failed in it, so `finalize_transcript` starts again with another."""

    stream: STTStream
    pushed_bytes: int = 0
    failed: bool = False
    finalizing: bool = False


class Listener:
    """Maps turns to streams of an STT: each turn's speech is pushed once, and streams of finished turns are closed."""

    def __init__(self, stt: STT) -> None:
        self.stt = stt
        self._streams: dict[str, dict[str, _TurnStream]] = {}
        """Conversation id -> turn id -> stream: clients choose the ids, so two conversations may have the same one."""

    def has_heard(self, conversation: Conversation, turn: UserTurn) -> bool:
        """Whether speech of the turn was pushed before."""
        return turn.id in self._streams.get(conversation.id, {})

    async def push(self, conversation: Conversation, turn: UserTurn, pcm: bytes) -> str | None:
        """`pcm` was added to the turn; returns the partial text where it changed. Raises `EngineFailure`."""
        entry = self._streams.get(conversation.id, {}).get(turn.id)
        if entry is None:
            return await self._push(conversation, turn, self._open(conversation, turn), turn.pcm)
        if entry.failed or entry.pushed_bytes >= turn.duration_ms * BYTES_PER_MS:
            return None
        return await self._push(conversation, turn, entry, pcm)

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The transcript of all speech of the turn, None where it has none. Raises `EngineFailure`."""
        if not turn.duration_ms:
            return None
        entry = self._streams.get(conversation.id, {}).get(turn.id)
        if entry is not None and entry.failed:
            await self._close(conversation.id, turn.id, entry)
            entry = None
        entry = entry or self._open(conversation, turn)
        entry.finalizing = True
        try:
            if entry.pushed_bytes < turn.duration_ms * BYTES_PER_MS:
                await self._push(conversation, turn, entry, turn.pcm[entry.pushed_bytes :])
            transcript = await entry.stream.finalize()
        except EngineFailure:
            # The next attempt pushes everything to another stream.
            await self._close(conversation.id, turn.id, entry)
            raise
        finally:
            entry.finalizing = False
        if turn is not conversation.pending_turn:
            await self._close(conversation.id, turn.id, entry)
        return transcript

    async def drop_finished(self, conversation: Conversation) -> None:
        """Close the streams of all turns but the pending one and those that are being finalized."""
        pending = conversation.pending_turn.id if conversation.pending_turn is not None else None
        for turn_id, entry in [*self._streams.get(conversation.id, {}).items()]:
            if turn_id != pending and not entry.finalizing:
                await self._close(conversation.id, turn_id, entry)

    async def release(self, conversation_id: str) -> None:
        """Close all streams of a conversation; unknown ids are fine."""
        for entry in self._streams.pop(conversation_id, {}).values():
            await entry.stream.close()

    def _open(self, conversation: Conversation, turn: UserTurn) -> _TurnStream:
        entry = _TurnStream(self.stt.open(conversation.language, conversation.id))
        self._streams.setdefault(conversation.id, {})[turn.id] = entry
        return entry

    async def _push(self, conversation: Conversation, turn: UserTurn, entry: _TurnStream, pcm: bytes) -> str | None:
        entry.pushed_bytes += len(pcm)
        try:
            return await entry.stream.push(pcm)
        except asyncio.CancelledError:
            # A cancelled `push` may have consumed part of the audio: the next call starts again from the beginning.
            await self._close(conversation.id, turn.id, entry)
            raise
        except EngineFailure:
            entry.failed = True
            raise

    async def _close(self, conversation_id: str, turn_id: str, entry: _TurnStream) -> None:
        turns = self._streams.get(conversation_id, {})
        if turns.get(turn_id) is entry:
            del turns[turn_id]
            if not turns:
                del self._streams[conversation_id]
        await entry.stream.close()
