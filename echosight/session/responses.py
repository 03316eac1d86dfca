"""The responses of a session: at most one that is generated on its conversation, and those out of band."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from echosight.conversation import Conversation, Item, new_id
from echosight.engines import GatedEngine
from echosight.errors import InputError
from echosight.events import Cancel, CreateResponse, Delta, ItemRemoved
from echosight.options import GenerateOptions, SessionOptions
from echosight.session.echo_guard import EchoGuard
from echosight.session.generation import ResponseGenerator
from echosight.session.out_of_band import OutOfBandResponses
from echosight.session.outbox import Outbox
from echosight.session.playback import KEPT_TRACKERS, RecentPlayback
from echosight.session.response import Response
from echosight.session.state import ConversationActivity, ResponseStep
from echosight.session.user_turn import UserInput


class ResponseController:
    """Starts and stops responses. A complete one may still be playing, and counts only as far as it was played."""

    def __init__(
        self,
        session_id: str,
        engine: GatedEngine,
        conversation: Conversation,
        user_input: UserInput,
        outbox: Outbox,
        activity: ConversationActivity,
        clock: Callable[[], float],
    ) -> None:
        self.options = SessionOptions()
        self.latest: Response | None = None
        """The conversation's latest response that was started."""
        self.playback = RecentPlayback()
        self.speech_end: float | None = None
        """Clock time when the user's speech ended; the next response's latency is measured from here."""
        self._session_id = session_id
        self._conversation = conversation
        self._user_input = user_input
        self._outbox = outbox
        self._activity = activity
        self._clock = clock
        self._echo_guard = EchoGuard()
        self._generator = ResponseGenerator(session_id, engine, outbox, clock)
        self._out_of_band = OutOfBandResponses(engine, conversation, user_input, self._generator)
        self._queued: Response | None = None
        self._recent: deque[Response] = deque(maxlen=KEPT_TRACKERS)
        """The latest ones, for deltas that the client is sent after the next response has started."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def generating(self) -> bool:
        """Whether a response is generated on the conversation."""
        return self._activity.generating

    @property
    def playing(self) -> bool:
        """Whether the client may still have speech of the latest response to play."""
        return self.latest is not None and self.latest.playing

    # --- starting -------------------------------------------------------------------------------

    async def respond(self, request: CreateResponse) -> None:
        """Respond now. Raises `InputError` while a response is generated, unless the request interrupts it.

        A response out of band neither interrupts another nor is interrupted.
        """
        if request.interrupt:
            await self.stop("client_cancelled")
        elif self.generating and request.conversation:
            raise InputError(
                "Conversation already has an active response",
                code="conversation_already_has_active_response",
            )
        self._start(self._create(request))

    def respond_after_current(self) -> None:
        """Respond to the turn that just ended, as soon as no other response is generated."""
        response = self._create(CreateResponse())
        if self.generating:
            self._queued = response
        else:
            self._start(response)

    def _create(self, request: CreateResponse) -> Response:
        return Response(request, self._outbox, self.playback, self._clock)

    def _start(self, response: Response) -> None:
        """Raises `InputError` where there is no capacity for a response out of band."""
        request, conversation = response.request, self._conversation
        if not request.conversation:
            self._out_of_band.check_capacity()
        if not request.conversation or request.input is not None:
            items = list(conversation.items if request.input is None else request.input)
            conversation = replace(conversation, id=new_id("conv"), items=items, pending_turn=None)
        options = replace(self.options.response, **(request.changes or {}))
        if options.language is None:
            options = replace(options, language=self.options.language)
        response.start(
            self._conversation if request.conversation else conversation,
            options,
            _last_user_item(conversation),
            engine_rate=self._generator.output_rate,
            output_rate=options.output_sample_rate or self.options.output_sample_rate,
            speech_end=self.speech_end if request.conversation else None,
        )
        if request.conversation:
            self._run_in_task(response, conversation, options)
        else:
            self._out_of_band.run(response, conversation, options)

    def _run_in_task(self, response: Response, conversation: Conversation, options: GenerateOptions) -> None:
        self.speech_end = None
        self.latest, self._activity.current = response, response.machine
        self._recent.append(response)
        work = self._run(response, conversation, options)
        response.task = asyncio.create_task(work, name=f"{self._session_id} {response.id}")
        self._tasks.add(response.task)
        response.task.add_done_callback(self._tasks.discard)

    async def _run(self, response: Response, conversation: Conversation, options: GenerateOptions) -> None:
        is_copy = conversation is not self._conversation
        try:
            await self._user_input.wait_for_transcripts(raise_failures=True)
            if is_copy:
                await self._out_of_band.transcribe(conversation)
            response.mark("transcript")
            is_echo = not is_copy and self._drop_echo()
            if not is_echo:
                await self._generator.run(response, conversation, options)
        except Exception as error:
            self._generator.fail(response, error)
        else:
            if is_echo:
                response.end("cancelled", "echo")
            else:
                response.complete()
        finally:
            if is_copy:
                await self._generator.release(conversation)
        queued, self._queued = self._queued, None
        if queued is not None:
            self._start(queued)

    def _drop_echo(self) -> bool:
        """Drop the user turn if it only echoes the previous response."""
        item = _last_user_item(self._conversation)
        if item is None or not self._echo_guard.is_echo(item):
            return False
        self._conversation.remove(item.id)
        self._outbox.push(ItemRemoved(item.id))
        return True

    # --- stopping -------------------------------------------------------------------------------

    async def stop(self, reason: str) -> bool:
        """Cancel the response that is generated, or cut the one that is still playing. False if there is neither."""
        self._drop_queued()
        return self.latest is not None and await self.latest.cancel(reason)

    async def cancel(self, event: Cancel) -> None:
        """Cancel a response by its id. Raises `InputError` where a strict request finds none."""
        if event.response_id is not None and await self._out_of_band.cancel(event.response_id):
            return
        current = self.latest.id if self.latest is not None and self.latest.generating else None
        if event.strict and (current is None or event.response_id not in (None, current)):
            raise InputError("Cancellation failed: no active response found", code="response_cancel_not_active")
        if event.response_id in (None, current):
            await self.stop("client_cancelled")

    async def close(self, reason: str) -> None:
        """Cancel the response that is generated and all those out of band; what they leave behind is released."""
        await self._out_of_band.close()
        if self.latest is not None and self.latest.generating:
            await self.stop(reason)
        self._drop_queued()
        if self._tasks:
            await asyncio.wait([*self._tasks])

    def _drop_queued(self) -> None:
        if self._queued is not None:
            self._queued.machine.advance(ResponseStep.END)
            self._queued = None

    # --- playback -------------------------------------------------------------------------------

    def speech_started(self, item_id: str) -> None:
        """The user's turn `item_id` begins, perhaps as the echo of the response that is playing."""
        playing = self.latest.playback if self.latest is not None else None
        self._echo_guard.speech_started(item_id, playing, self._clock())

    def report_played(self, item_id: str, audio_ms: float) -> None:
        """The client reports how much of an item it has played."""
        if (tracker := self.playback.get(item_id)) is not None:
            tracker.report_played(audio_ms)

    def on_sent(self, delta: Delta) -> None:
        """The client was sent a delta."""
        recent = (response for response in self._recent if response.id == delta.response_id)
        response = next(recent, None) or self._out_of_band.get(delta.response_id)
        if response is not None:
            response.on_sent(delta)


def _last_user_item(conversation: Conversation) -> Item | None:
    return next((item for item in reversed(conversation.items) if item.role == "user"), None)
