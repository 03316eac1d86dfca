"""One response, from the request for it to its last sample: its state, its items, its playback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from echosight.conversation import Conversation, Item, Part, Status, new_id
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.events import (
    CreateResponse,
    Delta,
    ItemTruncated,
    Outcome,
    Output,
    ResponseEnded,
    ResponseStarted,
    SpeechDelta,
    TextDelta,
    Waterfall,
)
from echosight.options import GenerateOptions
from echosight.session.outbox import Outbox
from echosight.session.playback import PlaybackTracker, RecentPlayback
from echosight.session.response_items import ResponseItems
from echosight.session.state import ResponseState, ResponseStep, response_machine

Stage = Literal["endpoint", "transcript", "first_text", "first_audio", "first_byte"]


class Response:
    """A response to one request. Its state changes only as `echosight.session.state` says.

    `task` generates it, from START on; `cancel` is the one way to stop it.
    """

    def __init__(
        self, request: CreateResponse, outbox: Outbox, recent_playback: RecentPlayback, clock: Callable[[], float]
    ) -> None:
        self.id = new_id("resp")
        self.request = request
        self.machine = response_machine()
        self.waterfall = Waterfall()
        self.playback = PlaybackTracker()
        self.task: asyncio.Task[None] | None = None
        self._outbox = outbox
        self._recent_playback = recent_playback
        self._clock = clock
        self._summary = GenerationSummary()
        self._items: ResponseItems
        self._speech_end = 0.0

    @property
    def state(self) -> ResponseState:
        return self.machine.state

    @property
    def generating(self) -> bool:
        """Whether it was announced and is neither complete nor ended."""
        return self.state in (ResponseState.WAITING, ResponseState.GENERATING)

    @property
    def playing(self) -> bool:
        """Whether the client may still have speech of it to play."""
        audible = self.state in (ResponseState.GENERATING, ResponseState.DRAINING)
        return audible and self.playback.is_playing(self._clock())

    @property
    def message_id(self) -> str | None:
        """The id of the item that it says, once there is one."""
        return self._items.message.id if self.state is not ResponseState.QUEUED and self._items.message else None

    # --- its course -----------------------------------------------------------------------------

    def start(
        self,
        conversation: Conversation,
        options: GenerateOptions,
        user_item: Item | None,
        *,
        engine_rate: int,
        output_rate: int,
        speech_end: float | None,
    ) -> None:
        """Announce it. Its items go into `conversation`; the stages of its waterfall count from `speech_end`."""
        self.machine.advance(ResponseStep.START)
        self._items = ResponseItems(self.id, conversation, self.playback, engine_rate, output_rate)
        self._speech_end = self._clock() if speech_end is None else speech_end
        self.mark("endpoint")
        request = self.request
        self._outbox.push(ResponseStarted(self.id, options, user_item, request.metadata, request.conversation))

    def mark(self, stage: Stage) -> None:
        """A stage of the waterfall is reached, unless it was before."""
        if getattr(self.waterfall, stage) is None:
            setattr(self.waterfall, stage, (self._clock() - self._speech_end) * 1000)

    def add(self, chunk: Chunk) -> Delta | None:
        """Take in a chunk of the engine: announce the item that it begins; returns what of it is to be sent."""
        if self.state is ResponseState.WAITING:
            self.machine.advance(ResponseStep.GENERATE)
        match chunk:
            case GenerationSummary():
                self._summary = chunk
                return None
            case TextChunk():
                self.mark("first_text")
            case SpeechChunk():
                self.mark("first_audio")
            case _:
                pass
        is_first = self._items.message is None
        announcements, delta = self._items.add(chunk)
        if is_first and self._items.message is not None and self.request.conversation:
            self._recent_playback.add(self._items.message.id, self.playback)
        for event in announcements:
            self._outbox.push(event)
        return delta

    def flush(self) -> SpeechDelta | None:
        """The last samples, which the resampler held back."""
        return self._items.flush()

    def on_sent(self, delta: Delta) -> None:
        """The client was sent a delta: account for what it can have played."""
        match delta:
            case SpeechDelta(chunk=chunk):
                self.playback.mark_audio_sent(chunk.seconds * 1000, self._clock())
                self.mark("first_byte")
            case TextDelta(text=text):
                self.playback.mark_text_sent(text)
            case _:
                pass

    def played_parts(self) -> tuple[Part, ...]:
        """The parts of its message, as far as they were played by now."""
        return self._items.parts_until(self.playback.played_ms(self._clock()))

    # --- its end --------------------------------------------------------------------------------

    def complete(self) -> None:
        """The engine has said all of it."""
        if self.state is ResponseState.WAITING:  # without a single chunk
            self.machine.advance(ResponseStep.GENERATE)
        self.machine.advance(ResponseStep.COMPLETE)
        self.playback.text_complete = True
        finish = self._summary.finish
        if finish == "stop":
            self._announce_end("completed", None, "completed", None)
        else:
            reason = "max_output_tokens" if finish == "length" else finish
            self._announce_end("incomplete", reason, "incomplete", None)

    def end(self, outcome: Outcome, reason: str, error: str | None = None) -> None:
        """It is over before it was complete; the conversation keeps what was played of it."""
        played_ms = self.playback.played_ms(self._clock())
        self.machine.advance(ResponseStep.END)
        self._announce_end(outcome, reason, "incomplete", played_ms, error)

    async def cancel(self, reason: str) -> bool:
        """The one way to stop it: drop what is unsent, stop the task, cut it to what was played. False if it is over.

        Drop before cancel: the task may be blocked by a full outbox.
        """
        match self.state:
            case ResponseState.WAITING | ResponseState.GENERATING:
                await self._cancel_task(reason)
                return True
            case ResponseState.DRAINING if self.playing:
                self._cut_playback()
                return True
            case _:
                return False

    async def _cancel_task(self, reason: str) -> None:
        assert self.task is not None
        self._outbox.drop_response(self.id)
        self.task.cancel()
        try:
            await asyncio.wait([self.task])
        finally:  # also when the client disconnects here, so that a resuming client still gets the final event
            self._outbox.drop_response(self.id)
            if self.generating:
                self.end("cancelled", reason)

    def _cut_playback(self) -> None:
        self._outbox.drop_response(self.id)
        played_ms = self.playback.played_ms(self._clock())
        self.machine.advance(ResponseStep.END)
        if (item := self._items.truncate(played_ms)) is not None:
            self._outbox.push(ItemTruncated(item.id, round(played_ms), item.text, requested=False))

    def _announce_end(
        self, outcome: Outcome, reason: str | None, status: Status, played_ms: float | None, error: str | None = None
    ) -> None:
        events: list[Output] = [*self._items.complete(status, played_ms)]
        ended = ResponseEnded(
            self.id,
            outcome,
            reason,
            tuple(self._items.completed),
            self._summary.usage,
            self.waterfall,
            self._summary.providers,
            error,
        )
        for event in (*events, ended):
            self._outbox.push(event)
