"""The user's side of a session: the pending turn, what the engine was given of it, and its transcript."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from echosight.conversation import Conversation, ImagePart, Item, Part, UserTurn
from echosight.engines import GatedEngine
from echosight.errors import EchoSightError, EngineFailure
from echosight.events import TranscriptionFailed, TranscriptUpdated
from echosight.media import Transcript
from echosight.session.outbox import Outbox
from echosight.session.state import ConversationActivity

log = logging.getLogger(__name__)

MAX_IMAGES = 64
"""Images that one turn keeps; later ones are left out."""


class UserInput:
    """Collects the pending turn, prefills the engine with it, and has its speech transcribed.

    While the engine generates on the conversation, parts are deferred: prefill and generate would write into one cache.
    A transcript that was finished speculatively, in a pause, is used if nothing was added to the turn afterwards.
    """

    def __init__(
        self, engine: GatedEngine, conversation: Conversation, outbox: Outbox, activity: ConversationActivity
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._outbox = outbox
        self._activity = activity
        self._deferred_parts: list[Part] = []
        self._partial_text = ""
        self._image_count = 0
        self._speculative: asyncio.Task[Transcript | None] | None = None
        self._transcriptions: dict[str, asyncio.Task[None]] = {}

    @property
    def turn(self) -> UserTurn:
        """The pending turn; a new one where there is none."""
        if self._conversation.pending_turn is None:
            self._conversation.pending_turn = UserTurn()
            self._partial_text, self._image_count = "", 0
        return self._conversation.pending_turn

    async def add(self, part: Part) -> None:
        """Append a part to the pending turn, and prefill the engine with it unless it generates."""
        turn = self.turn
        if isinstance(part, ImagePart):
            if self._image_count >= MAX_IMAGES:
                return
            self._image_count += 1
        self._drop_speculative()
        self._deferred_parts.append(turn.add(part))
        if self._activity.generating:
            return
        deferred, self._deferred_parts = self._deferred_parts, []
        for deferred_part in deferred:
            await self._prefill(turn, deferred_part)

    def speculate_transcript(self, on_text: Callable[[str], None] | None = None) -> None:
        """The user pauses: have the transcript finished, in case this is the end of the turn.

        `on_text` is called at once with the partial text so far, and again with the finished transcript's.
        """
        if on_text is not None:
            on_text(self._partial_text)
        turn = self._conversation.pending_turn
        if turn is not None and not self._activity.generating and self._speculative is None:
            self._speculative = asyncio.create_task(self._engine.finalize_transcript(self._conversation, turn))
            if on_text is not None:
                self._speculative.add_done_callback(lambda task: _notify(task, on_text))
            self._speculative.add_done_callback(_consume_exception)

    def commit(self) -> Item:
        """Close the pending turn and add it to the conversation. Its transcript follows when it is known."""
        turn = self.turn
        self._conversation.pending_turn = None
        self._deferred_parts.clear()
        item = turn.to_item()
        self._conversation.add(item)
        speculative, self._speculative = self._speculative, None
        self.transcribe_item(turn, speculative)
        return item

    def transcribe_item(self, turn: UserTurn, speculative: asyncio.Task[Transcript | None] | None = None) -> None:
        """Have the speech of a closed turn transcribed, or wait for its `speculative` transcript.

        Transcripts are announced in the order of the turns.
        """
        if not turn.duration_ms:
            return
        previous = next(reversed(self._transcriptions.values()), None)
        # A client may reuse the id of a deleted item. Cancel the old transcription first: two streams of one id would
        # wait for each other.
        replaced = self._transcriptions.pop(turn.id, None)
        if replaced is not None:
            replaced.cancel()
        work = self._transcribe(turn, speculative, previous, replaced)
        self._transcriptions[turn.id] = task = asyncio.create_task(work, name=f"transcript of {turn.id}")
        task.add_done_callback(_consume_exception)

    async def wait_for_transcripts(self, *, raise_failures: bool = False) -> None:
        """Wait for all pending transcriptions.

        Failures are ignored: the response that needs the transcript waits with `raise_failures`, and fails by them.
        """
        if not raise_failures:
            if self._transcriptions:
                await asyncio.wait([*self._transcriptions.values()])
            return
        while self._transcriptions:
            item_id, task = next(iter(self._transcriptions.items()))
            await asyncio.wait([task])
            if self._transcriptions.get(item_id) is task:
                del self._transcriptions[item_id]
                task.result()

    def clear(self) -> None:
        """Drop the pending turn."""
        self._drop_speculative()
        self._conversation.pending_turn = None
        self._deferred_parts.clear()

    async def close(self) -> None:
        """Drop the pending turn and cancel all transcriptions."""
        self.clear()
        tasks = list(self._transcriptions.values())
        self._transcriptions.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _prefill(self, turn: UserTurn, part: Part) -> None:
        try:
            partial = await self._engine.prefill(self._conversation, part)
        except EngineFailure as error:  # finalize_transcript takes the speech from the turn itself
            log.warning("prefilling %s failed: %s", turn.id, error.message)
            return
        except Exception:
            log.exception("prefilling %s failed", turn.id)
            return
        if partial is not None and partial != self._partial_text:
            self._partial_text = partial
            self._outbox.push(TranscriptUpdated(turn.id, Transcript(partial, final=False), turn.duration_ms))

    async def _transcribe(
        self,
        turn: UserTurn,
        speculative: asyncio.Task[Transcript | None] | None,
        previous: asyncio.Task[None] | None,
        replaced: asyncio.Task[None] | None,
    ) -> None:
        failure: EchoSightError | None = None
        transcript: Transcript | None = None
        if replaced is not None:
            await asyncio.wait([replaced])
        try:
            transcript = await (speculative or self._engine.finalize_transcript(self._conversation, turn))
        except EchoSightError as error:
            failure = error
        except Exception:
            log.exception("transcribing %s failed", turn.id)
            failure = EngineFailure("The speech could not be transcribed")
        if previous is not None:
            await asyncio.wait([previous])
        if failure is not None:
            self._outbox.push(TranscriptionFailed(turn.id, failure.code, failure.message))
            raise failure
        if transcript is not None:
            self._conversation.set_transcript(turn.id, transcript.text)
            self._outbox.push(TranscriptUpdated(turn.id, transcript, turn.duration_ms))

    def _drop_speculative(self) -> None:
        if self._speculative is not None:
            self._speculative.cancel()
            self._speculative = None


def _consume_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception so that asyncio does not log it: only a response that needs the transcript fails by it."""
    if not task.cancelled():
        task.exception()


def _notify(task: asyncio.Task[Transcript | None], on_text: Callable[[str], None]) -> None:
    if not task.cancelled() and task.exception() is None and (transcript := task.result()) is not None:
        on_text(transcript.text)
