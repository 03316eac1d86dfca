"""One live conversation: whose turn it is, at most one answer in progress, and what waits to be sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from echosight import events as ev
from echosight.answer import Answer, Answers
from echosight.conversation import Conversation, ImagePart, TextPart, new_id
from echosight.ear import Ear
from echosight.echo_guard import EchoGuard
from echosight.edits import Edits
from echosight.engines import Engine
from echosight.errors import EchoSightError, InputError
from echosight.hearing import Hearing, speech
from echosight.media import HEARD_HZ, AudioChunk, ImageFrame
from echosight.options import GenerateOptions, SessionOptions, TurnOptions
from echosight.outbox import Outbox
from echosight.turns import Signal, SpeechBegan, SpeechEnded, SpeechPaused, SpeechResumed, VoiceStream

log = logging.getLogger(__name__)

Tap = Callable[["ev.Input | ev.Output"], None]

KEPT_SPEECH_MS = 60_000
"""Raw speech that a conversation keeps once it is transcribed."""

KEPT_IMAGE_BYTES = 32 << 20
"""Encoded pictures that a conversation keeps: some ten minutes of a frame each second."""

STALE_LEVELS = 32
"""Unread events behind which a level meter is of no more use."""


class Session:
    """A conversation between one client and one engine.

    `feed` takes the client's inputs one at a time; `outbox` holds what it is to be told. `taps` see every
    input and output, for recordings and metrics. `clock` tells how much of an answer can have been played, and
    is used for nothing else that the client sees.
    """

    def __init__(
        self,
        session_id: str,
        engine: Engine,
        voice: VoiceStream,
        options: SessionOptions | None = None,
        *,
        conversation: Conversation | None = None,
        taps: Sequence[Tap] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = session_id
        self.options = options or SessionOptions()
        self.conversation = conversation or Conversation()
        self.outbox = Outbox(self._left)
        self._engine = engine
        self._taps = taps
        self._clock = clock
        self._ear = Ear(voice, self.options.turn or TurnOptions())
        self._hearing = Hearing(engine, self.conversation, self._announce)
        self._feeding = asyncio.Lock()
        self._paused = False
        self._glimpse: ImageFrame | None = None
        self._speech_end: float | None = None
        self._quiet_since = 0
        self._task: asyncio.Task[None] | None = None
        self._next: ev.Respond | None = None
        self._answers = Answers()
        self._echo = EchoGuard()
        self._edits = Edits(self.conversation, self._answers, self._hearing, self._announce)
        self._apply(self.options)
        self._announce(ev.Opened(session_id, self.options))

    @property
    def answering(self) -> bool:
        """Whether an answer is being made."""
        return self._task is not None and not self._task.done()

    async def feed(self, event: ev.Input) -> None:
        """Take in one input, in order. Raises `InputError` if it cannot be done; then it has no effect."""
        async with self._feeding:
            for tap in self._taps:
                tap(event)
            await self._take(event)

    def refuse(self, failure: ev.Failure) -> None:
        """Tell the client that something it sent was not taken in."""
        self._announce(failure)

    async def stop(self, reason: str = "client_cancelled") -> bool:
        """Stop the answer in progress, or being played, at once; ahead of inputs that wait. False if there was none."""
        return await self._interrupt(reason) or self._cut_what_plays()

    async def close(self) -> None:
        """End it: the answer, the transcripts and what the engine holds of it."""
        await self._interrupt("session_closed")
        await self._hearing.close()
        await self._engine.release(self.conversation.id)
        self.outbox.close()

    async def _take(self, event: ev.Input) -> None:
        match event:
            case ev.Audio(chunk):
                await self._hear(chunk)
            case ev.Image(frame):
                await self._see(frame)
            case ev.Text(text):
                await self._hearing.add(TextPart(text))
            case ev.Commit(min_audio_ms):
                await self._commit_by_hand(min_audio_ms)
            case ev.Respond():
                await self._respond(event)
            case ev.Cancel():
                await self._cancel(event)
            case ev.ClearInput():
                self._forget_input()
                self._announce(ev.InputCleared())
            case ev.Configure(options):
                self._apply(options)
                self._announce(ev.Configured(options))
            case ev.Mark(tag):
                self._announce(ev.Marked(tag, self.answering))
            case ev.Reset():
                await self._interrupt("client_cancelled")
                self._forget_input()
                self.conversation.items.clear()
                await self._engine.release(self.conversation.id)
            case ev.Played(item_id, audio_ms):
                if (answer := self._answers.with_item(item_id)) is not None:
                    answer.ledger.played(audio_ms)
            case ev.AddItem() | ev.RemoveItem() | ev.RetrieveItem():
                self._edits.apply(event)
            case ev.Truncate(item_id):
                if self.answering and self._answers.with_item(item_id) is self._answers.latest:
                    await self._interrupt("client_cancelled")
                self._edits.apply(event)

    # --- the user's turn ------------------------------------------------------------------------

    async def _hear(self, chunk: AudioChunk) -> None:
        pcm = self._ear.resample(chunk)
        if self.options.turn is None:
            if pcm:
                await self._hearing.add(speech(pcm))
            return
        for window in self._ear.windows(pcm):
            probability, signals = await self._ear.judge(window)
            if self.options.levels and len(self.outbox) < STALE_LEVELS:
                self._announce(ev.Level(self._ear.position, probability))
            if probability >= self._ear.options.threshold:
                self._speech_end = self._clock()
            for signal in signals:
                await self._signal(signal)
            if self._ear.speaking and not self._paused:
                await self._hearing.add(speech(self._ear.take()))
            await self._mind_silence()

    async def _mind_silence(self) -> None:
        """With an idle time, a user who has not spoken since the last answer was played is answered all the same."""
        position, idle_ms = self._ear.position, self._ear.options.idle_ms
        answer = self._answers.latest
        idle = answer is not None and not (self._ear.speaking or self.answering or answer.ledger.playing(self._clock()))
        if idle_ms is None or not idle:
            self._quiet_since = position
        elif position - self._quiet_since >= idle_ms * HEARD_HZ // 1000:
            start, self._quiet_since = self._quiet_since, position
            self._announce(ev.SilenceTimedOut(self._hearing.turn.id, start, position))
            await self._hearing.add(speech(self._ear.take()))
            self._commit()
            self._begin(ev.Respond())

    async def _signal(self, signal: Signal) -> None:
        match signal:
            case SpeechBegan(at):
                await self._speech_began(at)
            case SpeechPaused():
                await self._hearing.add(speech(self._ear.take()))
                self._paused = True
                self._hearing.guess(self._ear.consider)
            case SpeechResumed():
                self._paused = False
            case SpeechEnded(at):
                await self._speech_ended(at)

    async def _speech_began(self, at: int) -> None:
        turn = self._hearing.turn
        self._announce(ev.SpeechStarted(turn.id, at))
        latest = self._answers.latest
        self._echo.speech_began(turn.id, latest.ledger if latest else None, self._clock())
        if self._ear.options.interrupt_response:
            await self.stop("turn_detected")
        await self._hearing.add(speech(self._ear.take(at)))
        await self._add_glimpse()

    async def _speech_ended(self, at: int) -> None:
        if not self._paused and (pcm := self._ear.take()):
            await self._hearing.add(speech(pcm))
        self._paused = False
        self._announce(ev.SpeechStopped(self._hearing.turn.id, at))
        self._commit()
        if self._ear.options.create_response:
            self._begin_or_queue(ev.Respond())

    async def _see(self, frame: ImageFrame) -> None:
        """A frame belongs to the turn in progress; between turns the newest waits for the next one."""
        self._glimpse = frame
        if self.options.turn is None or self._ear.speaking:
            await self._add_glimpse()

    async def _add_glimpse(self) -> None:
        if self._glimpse is not None:
            part = ImagePart(self._glimpse, detail="high" if self.options.hd_video else "auto")
            self._glimpse = None
            await self._hearing.add(part)

    async def _commit_by_hand(self, min_audio_ms: int) -> None:
        if pcm := self._ear.rest():
            await self._hearing.add(speech(pcm))
        await self._add_glimpse()
        turn = self.conversation.open
        has = turn.duration_ms if turn else 0
        if not turn or (has < min_audio_ms and not turn.close().images and not turn.close().text):
            raise InputError(
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{max(min_audio_ms, 1)}ms of audio, but buffer only has {has:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        self._paused = False
        self._ear.forget()
        self._speech_end = self._clock()
        self._commit()

    def _commit(self) -> None:
        item = self._hearing.commit()
        previous = self.conversation.previous_id(item.id)
        self._announce(ev.InputCommitted(item.id, previous))
        self._announce(ev.ItemAdded(item, previous))
        self._announce(ev.ItemDone(item, previous))
        self.conversation.let_go(KEPT_SPEECH_MS, KEPT_IMAGE_BYTES)

    def _forget_input(self) -> None:
        self._ear.forget()
        self._hearing.forget()
        self._glimpse, self._paused = None, False

    # --- the answer -----------------------------------------------------------------------------

    async def _respond(self, request: ev.Respond) -> None:
        if self.answering:
            if not request.interrupt:
                raise InputError(
                    "Conversation already has an active response",
                    code="conversation_already_has_active_response",
                )
            await self._interrupt("client_cancelled")
        elif request.interrupt:
            self._cut_what_plays()
        self._begin(request)

    def _begin_or_queue(self, request: ev.Respond) -> None:
        if self.answering:
            self._next = request
        else:
            self._begin(request)

    def _begin(self, request: ev.Respond) -> None:
        conversation = self.conversation
        if not request.conversation or request.input is not None:
            items = list(conversation.items if request.input is None else request.input)
            conversation = replace(conversation, id=new_id("conv"), items=items, open=None)
        options = request.options or self.options.answer
        if options.language is None:
            options = replace(options, language=self.options.language)
        rates = self._engine.output_rate, self.options.output_hz
        answer = Answer(conversation, *rates, self._clock, self._speech_end)
        self._speech_end = None
        self._answers.add(answer)
        user = next((i for i in reversed(conversation.items) if i.role == "user"), None)
        self._announce(ev.TurnStarted(answer.turn, options, user, request.metadata, request.conversation))
        self._hearing.answering = True
        work = self._work(answer, conversation, options)
        self._task = asyncio.create_task(work, name=f"{self.id} {answer.turn}")

    async def _work(self, answer: Answer, conversation: Conversation, options: GenerateOptions) -> None:
        try:
            await self._hearing.understood()
            answer.mark("transcript")
            if self._drop_echo(conversation):
                self._end(answer, "cancelled", "echo")
            else:
                await self._generate(answer, conversation, options)
                self._end(answer, "completed")
        except EchoSightError as error:
            log.warning("turn %s of session %s failed: %s", answer.turn, self.id, error.code)
            self._end(answer, "failed", error.code, error.message)
        except Exception:
            log.exception("turn %s of session %s failed", answer.turn, self.id)
            self._end(answer, "failed", "engine_failed", "The engine failed")
        if conversation is not self.conversation:
            await self._engine.release(conversation.id)
        if self._next is not None:
            request, self._next = self._next, None
            self._begin(request)

    def _drop_echo(self, conversation: Conversation) -> bool:
        """The turn to be answered is no turn where it only repeats the answer before."""
        item = next((i for i in reversed(conversation.items) if i.role == "user"), None)
        if conversation is not self.conversation or item is None or not self._echo.is_echo(item):
            return False
        self._edits.apply(ev.RemoveItem(item.id))
        return True

    async def _generate(self, answer: Answer, conversation: Conversation, options: GenerateOptions) -> None:
        async with aclosing(self._engine.generate(conversation, options)) as pieces:
            async for piece in pieces:
                news, delta = answer.take(piece)
                for event in news:
                    self._announce(event)
                if delta is not None:
                    await self._pace(answer, delta, options.lead_ms)
                    await self._put(delta)
        if (rest := answer.rest()) is not None:
            await self._put(rest)

    async def _pace(self, answer: Answer, delta: ev.Delta, lead_ms: int | None) -> None:
        if lead_ms is not None and isinstance(delta, ev.SpeechDelta):
            early_ms = answer.ledger.unplayed_ms(self._clock()) - lead_ms
            if early_ms > 0:
                await asyncio.sleep(early_ms / 1000)

    def _end(self, answer: Answer, outcome: ev.Outcome, reason: str | None = None, error: str | None = None) -> None:
        self._hearing.answering = False
        heard_ms = None if outcome == "completed" else answer.ledger.heard_ms(self._clock())
        for event in answer.end(outcome, reason, heard_ms, error):
            self._announce(event)

    async def _interrupt(self, reason: str) -> bool:
        """The one way an answer is stopped: drop what is unsent, cancel, await, cut to what was heard."""
        self._next = None
        task = self._task
        if task is None or task.done():
            return False
        answer = self._answers.latest
        assert answer is not None
        self.outbox.drop(answer.turn)
        task.cancel()
        await asyncio.wait([task])
        self.outbox.drop(answer.turn)
        if not answer.ended:
            self._end(answer, "cancelled", reason)
        return True

    def _cut_what_plays(self) -> bool:
        """An answer that was made may still be playing: it counts only as far as it was heard."""
        answer = self._answers.latest
        now = self._clock()
        if answer is None or answer.message is None or not answer.ended or not answer.ledger.playing(now):
            return False
        self.outbox.drop(answer.turn)
        heard_ms = answer.ledger.heard_ms(now)
        if (item := answer.cut(heard_ms)) is not None:
            self._announce(ev.ItemTruncated(item.id, round(heard_ms), item.text, requested=False))
        return True

    async def _cancel(self, event: ev.Cancel) -> None:
        current = self._answers.latest.turn if self._answers.latest and self.answering else None
        if event.strict and (current is None or event.turn not in (None, current)):
            raise InputError("Cancellation failed: no active response found", code="response_cancel_not_active")
        if event.turn in (None, current):
            await self.stop()

    def _left(self, event: ev.Output) -> None:
        """The outbox's reader took an event: account for what the client can have heard."""
        match event:
            case ev.SpeechDelta(turn, _, chunk) if (answer := self._answers.get(turn)) is not None:
                answer.ledger.sent_speech(chunk.seconds * 1000, self._clock())
                answer.mark("first_byte")
            case ev.TextDelta(turn, _, text) if (answer := self._answers.get(turn)) is not None:
                answer.ledger.sent_text(text)
            case _:
                pass

    # --- options and events ---------------------------------------------------------------------

    def _apply(self, options: SessionOptions) -> None:
        if options.turn is None and self.options.turn is not None:
            self._forget_input()
        self.options = options
        self.conversation.instructions = options.instructions
        self.conversation.language = options.language
        self.conversation.tools = options.tools
        if options.turn is not None:
            self._ear.options = options.turn

    def _announce(self, event: ev.Output) -> None:
        for tap in self._taps:
            tap(event)
        self.outbox.push(event)

    async def _put(self, delta: ev.Delta) -> None:
        for tap in self._taps:
            tap(delta)
        await self.outbox.put(delta)
