"""The answering side of a session: at most one answer in progress, stopped in one way, and what was heard of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from echosight import events as ev
from echosight.conversation import Conversation, Item, new_id
from echosight.engines import GatedEngine
from echosight.errors import InputError
from echosight.options import GenerateOptions, SessionOptions
from echosight.session.echo_guard import EchoGuard
from echosight.session.generation import ResponseGenerator
from echosight.session.out_of_band import OutOfBandResponses
from echosight.session.outbox import Outbox
from echosight.session.response import RecentResponses, Response
from echosight.session.user_turn import UserInput


class ResponseController:
    """Lets the engine answer, piece by piece into the outbox.

    One task makes an answer; `interrupt` is the one way to stop it. An answer that was made may still be playing at the
    client, and counts only as far as it was heard.
    """

    def __init__(
        self,
        name: str,
        engine: GatedEngine,
        conversation: Conversation,
        hearing: UserInput,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self.answers = RecentResponses()
        self.options = SessionOptions()
        self.speech_end: float | None = None
        """When the speech ended that the next answer is to, by the clock."""
        self._name = name
        self._engine = engine
        self._conversation = conversation
        self._hearing = hearing
        self._outbox = outbox
        self._clock = clock
        self._echo = EchoGuard()
        self._maker = ResponseGenerator(name, engine, outbox, clock)
        self._asides = OutOfBandResponses(engine, conversation, hearing, self._maker)
        self._task: asyncio.Task[None] | None = None
        self._next: ev.CreateResponse | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""
        return self._task is not None and not self._task.done()

    @property
    def playing(self) -> bool:
        """Whether the client may still have speech of the latest answer to play."""
        return self.answers.latest is not None and self.answers.latest.ledger.playing(self._clock())

    # --- beginning ------------------------------------------------------------------------------

    async def respond(self, request: ev.CreateResponse) -> None:
        """Answer now. Raises `InputError` while another answer is made, unless the request interrupts it.

        An answer out of band disturbs no other, and is disturbed by none.
        """
        if request.interrupt:
            await self.stop("client_cancelled")
        elif self.busy and request.conversation:
            raise InputError(
                "Conversation already has an active response",
                code="conversation_already_has_active_response",
            )
        self._begin(request)

    def respond_next(self) -> None:
        """Answer the turn that just ended, as soon as no other answer is being made."""
        if self.busy:
            self._next = ev.CreateResponse()
        else:
            self._begin(ev.CreateResponse())

    def _begin(self, request: ev.CreateResponse) -> None:
        """Raises `InputError` where there is no room for an answer out of band."""
        conversation = self._conversation
        if not request.conversation:
            self._asides.check_room()
        if not request.conversation or request.input is not None:
            items = list(conversation.items if request.input is None else request.input)
            conversation = replace(conversation, id=new_id("conv"), items=items, pending_turn=None)
        options = replace(self.options.response, **(request.changes or {}))
        if options.language is None:
            options = replace(options, language=self.options.language)
        kept = self._conversation if request.conversation else conversation
        rate = options.output_sample_rate or self.options.output_sample_rate
        speech_end = self.speech_end if request.conversation else None
        answer = Response(kept, self._engine.output_rate, rate, self._clock, speech_end)
        user = _last_of_user(conversation)
        self._outbox.push(ev.ResponseStarted(answer.turn, options, user, request.metadata, request.conversation))
        if not request.conversation:
            self._asides.begin(answer, conversation, options)
            return
        self.speech_end = None
        self.answers.add(answer)
        self._hearing.answering = True
        work = self._work(answer, conversation, options)
        self._task = asyncio.create_task(work, name=f"{self._name} {answer.turn}")

    # --- making ---------------------------------------------------------------------------------

    async def _work(self, answer: Response, conversation: Conversation, options: GenerateOptions) -> None:
        try:
            await self._hearing.understood()
            if conversation is not self._conversation:
                await self._asides.understand(conversation)
            answer.mark("transcript")
            if self._drop_echo(conversation):
                self._end(answer, "cancelled", "echo")
            else:
                await self._maker.make(answer, conversation, options)
                self._end(answer, "completed")
        except Exception as error:
            self._hearing.answering = False
            self._maker.fail(answer, error)
        finally:
            if conversation is not self._conversation:
                await self._engine.release(conversation.id)
        if self._next is not None:
            request, self._next = self._next, None
            self._begin(request)

    def _drop_echo(self, conversation: Conversation) -> bool:
        """The turn to be answered is no turn where it only repeats the answer before."""
        item = _last_of_user(conversation)
        if conversation is not self._conversation or item is None or not self._echo.is_echo(item):
            return False
        conversation.remove(item.id)
        self._outbox.push(ev.ItemRemoved(item.id))
        return True

    def _end(self, answer: Response, outcome: ev.Outcome, reason: str | None = None) -> None:
        self._hearing.answering = False
        self._maker.end(answer, outcome, reason)

    # --- stopping -------------------------------------------------------------------------------

    async def stop(self, reason: str) -> bool:
        """Stop the answer that is being made, or cut the one that still plays. False if there was neither."""
        return await self.interrupt(reason) or self._cut_what_plays()

    async def close(self, reason: str) -> None:
        """Stop the answer in progress and all those beside it."""
        await self._asides.close()
        await self.interrupt(reason)

    async def cancel(self, event: ev.Cancel) -> None:
        """Stop an answer by name. Raises `InputError` where a strict request finds none."""
        if event.response_id is not None and await self._asides.cancel(event.response_id):
            return
        current = self.answers.latest.turn if self.answers.latest and self.busy else None
        if event.strict and (current is None or event.response_id not in (None, current)):
            raise InputError("Cancellation failed: no active response found", code="response_cancel_not_active")
        if event.response_id in (None, current):
            await self.stop("client_cancelled")

    async def interrupt(self, reason: str) -> bool:
        """Stop the answer that is being made. False if there is none."""
        self._next = None
        task, answer = self._task, self.answers.latest
        if task is None or answer is None or task.done():
            return False
        try:
            await self._maker.stop(answer, task, reason)
        finally:
            self._hearing.answering = False
        return True

    def _cut_what_plays(self) -> bool:
        answer = self.answers.latest
        if answer is None or not answer.ended or not self.playing:
            return False
        self._outbox.drop(answer.turn)
        heard_ms = answer.ledger.heard_ms(self._clock())
        if (item := answer.cut(heard_ms)) is not None:
            self._outbox.push(ev.ItemTruncated(item.id, round(heard_ms), item.text, requested=False))
        return True

    # --- being heard ----------------------------------------------------------------------------

    def speech_began(self, item_id: str) -> None:
        """The user's turn `item_id` begins, perhaps as the echo of what plays."""
        latest = self.answers.latest
        self._echo.speech_began(item_id, latest.ledger if latest else None, self._clock())

    def played(self, item_id: str, audio_ms: float) -> None:
        """The client says how much of an item it has played."""
        if (answer := self.answers.with_item(item_id)) is not None:
            answer.ledger.played(audio_ms)

    def left(self, event: ev.Output) -> None:
        """The outbox's reader took an event."""
        if isinstance(event, ev.Delta):
            answer = self.answers.get(event.response_id) or self._asides.get(event.response_id)
            if answer is not None:
                self._maker.left(answer, event)


def _last_of_user(conversation: Conversation) -> Item | None:
    return next((item for item in reversed(conversation.items) if item.role == "user"), None)
