"""The user's side of a session: the turn in progress, what the engine was given of it, and its transcript."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from echosight.conversation import Conversation, ImagePart, Item, Part, UserTurn
from echosight.engines import Engine
from echosight.errors import EchoSightError, EngineFailure
from echosight.events import Output, TranscriptionFailed, TranscriptUpdated
from echosight.media import Transcript

log = logging.getLogger(__name__)

MAX_IMAGES = 64
"""Pictures that one turn keeps; later ones are left out."""


class UserInput:
    """Collects the open turn, prefills the engine with it, and sees to its transcript.

    While `answering`, parts wait: two writers would interleave in one cache. A transcript that was finished
    early, in a silence, is used if no more was said.
    """

    def __init__(self, engine: Engine, conversation: Conversation, announce: Callable[[Output], None]) -> None:
        self.answering = False
        self._engine = engine
        self._conversation = conversation
        self._announce = announce
        self._waiting: list[Part] = []
        self._partial = ""
        self._images = 0
        self._early: asyncio.Task[Transcript | None] | None = None
        self._transcripts: dict[str, asyncio.Task[None]] = {}

    @property
    def turn(self) -> UserTurn:
        """The open turn; a new one where there is none."""
        if self._conversation.pending_turn is None:
            self._conversation.pending_turn = UserTurn()
            self._partial, self._images = "", 0
        return self._conversation.pending_turn

    async def add(self, part: Part) -> None:
        """More of the user's turn."""
        if isinstance(part, ImagePart):
            if self._images >= MAX_IMAGES:
                return
            self._images += 1
        self._drop_guess()
        turn = self.turn
        self._waiting.append(turn.add(part))
        if self.answering:
            return
        waiting, self._waiting = self._waiting, []
        for part in waiting:
            await self._prefill(turn, part)

    def guess(self, then: Callable[[str], None] | None = None) -> None:
        """The user pauses: have the transcript finished, in case this is the end of the turn.

        `then` is told what was understood so far, and again what the finished transcript says.
        """
        if then is not None:
            then(self._partial)
        turn = self._conversation.pending_turn
        if turn is not None and not self.answering and self._early is None:
            self._early = asyncio.create_task(self._engine.finalize_transcript(self._conversation, turn))
            if then is not None:
                self._early.add_done_callback(lambda early: _tell(early, then))
            self._early.add_done_callback(_hear_out)

    def commit(self) -> Item:
        """Close the open turn and put it into the conversation. Its transcript follows when it is known."""
        turn = self.turn
        self._conversation.pending_turn = None
        self._waiting.clear()
        item = turn.to_item()
        self._conversation.add(item)
        early, self._early = self._early, None
        self.understand(turn, early)
        return item

    def understand(self, turn: UserTurn, early: asyncio.Task[Transcript | None] | None = None) -> None:
        """Have the speech of a closed turn transcribed, if that was not begun `early`. Turns are told of in order."""
        if not turn.duration_ms:
            return
        last = next(reversed(self._transcripts.values()), None)
        # A client may have deleted an item and made another of the same name: two of one utterance would never end.
        replaced = self._transcripts.pop(turn.id, None)
        if replaced is not None:
            replaced.cancel()
        work = self._transcribe(turn, early, last, replaced)
        self._transcripts[turn.id] = asyncio.create_task(work, name=f"transcript of {turn.id}")

    async def understood(self) -> None:
        """Wait until all closed turns are transcribed. Raises what went wrong with one of them."""
        while self._transcripts:
            item_id, task = next(iter(self._transcripts.items()))
            await asyncio.wait([task])
            if self._transcripts.get(item_id) is task:
                del self._transcripts[item_id]
                task.result()

    async def transcribed(self) -> None:
        """Wait until all closed turns are transcribed, or cannot be; whoever answers them is told which."""
        if self._transcripts:
            await asyncio.wait([*self._transcripts.values()])

    def forget(self) -> None:
        """Drop the open turn."""
        self._drop_guess()
        self._conversation.pending_turn = None
        self._waiting.clear()

    async def close(self) -> None:
        self.forget()
        tasks = list(self._transcripts.values())
        self._transcripts.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _prefill(self, turn: UserTurn, part: Part) -> None:
        try:
            partial = await self._engine.prefill(self._conversation, part)
        except (
            EngineFailure
        ) as error:  # computing ahead has failed; `finalize_transcript` takes the speech from the turn itself
            log.warning("prefilling %s failed: %s", turn.id, error.message)
            return
        except Exception:
            log.exception("prefilling %s failed", turn.id)
            return
        if partial is not None and partial != self._partial:
            self._partial = partial
            self._announce(TranscriptUpdated(turn.id, Transcript(partial, final=False), turn.duration_ms))

    async def _transcribe(
        self,
        turn: UserTurn,
        early: asyncio.Task[Transcript | None] | None,
        earlier: asyncio.Task[None] | None,
        replaced: asyncio.Task[None] | None,
    ) -> None:
        failure: EchoSightError | None = None
        transcript: Transcript | None = None
        if replaced is not None:
            await asyncio.wait([replaced])
        try:
            transcript = await (early or self._engine.finalize_transcript(self._conversation, turn))
        except EchoSightError as error:
            failure = error
        except Exception:
            log.exception("transcribing %s failed", turn.id)
            failure = EngineFailure("The speech could not be transcribed")
        if earlier is not None:
            await asyncio.wait([earlier])
        if failure is not None:
            self._announce(TranscriptionFailed(turn.id, failure.code, failure.message))
            raise failure
        if transcript is not None:
            self._conversation.transcribed(turn.id, transcript.text)
            self._announce(TranscriptUpdated(turn.id, transcript, turn.duration_ms))

    def _drop_guess(self) -> None:
        if self._early is not None:
            self._early.cancel()
            self._early = None


def _hear_out(guess: asyncio.Task[Transcript | None]) -> None:
    """What a guess failed of matters only if it is asked for."""
    if not guess.cancelled():
        guess.exception()


def _tell(early: asyncio.Task[Transcript | None], then: Callable[[str], None]) -> None:
    if not early.cancelled() and early.exception() is None and (transcript := early.result()) is not None:
        then(transcript.text)
