"""One live conversation: whose turn it is, at most one answer in progress, and what waits to be sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from echosight import events as ev
from echosight.conversation import Conversation, ImagePart, TextPart, pcm_part
from echosight.engines import GatedEngine
from echosight.errors import InputError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, ImageFrame
from echosight.options import SessionOptions, TurnDetectionOptions, apply_changes
from echosight.session.item_edits import ItemEditor
from echosight.session.outbox import Outbox, Tap
from echosight.session.responses import ResponseController
from echosight.session.user_turn import UserInput
from echosight.turns.audio_input import AudioInput
from echosight.turns.detector import Signal, SpeechBegan, SpeechEnded, SpeechPaused, SpeechResumed
from echosight.turns.vad import VadStream

KEPT_SPEECH_MS = 60_000
"""Raw speech that a conversation keeps once it is transcribed."""

KEPT_IMAGE_BYTES = 32 << 20
"""Encoded pictures that a conversation keeps: some ten minutes of a frame each second."""

LONGEST_TURN_MS = 600_000
"""Longest turn that a client commits by hand; server VAD ends its turns after `TurnDetectionOptions.max_turn_ms`."""

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
        engine: GatedEngine,
        voice: VadStream,
        options: SessionOptions | None = None,
        *,
        conversation: Conversation | None = None,
        taps: Sequence[Tap] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = session_id
        self.options = options or SessionOptions()
        self._turn_detection = self.options.turn_detection
        self.conversation = conversation or Conversation()
        self.outbox = Outbox(taps, leaving=lambda event: self._answering.left(event))
        self._engine = engine
        self._taps = taps
        self._clock = clock
        self._ear = AudioInput(voice, self.options.turn_detection or TurnDetectionOptions())
        self._hearing = UserInput(engine, self.conversation, self.outbox.push)
        self._answering = ResponseController(session_id, engine, self.conversation, self._hearing, self.outbox, clock)
        self._edits = ItemEditor(self.conversation, self._answering.answers, self._hearing, self.outbox.push)
        self._feeding = asyncio.Lock()
        self._paused = False
        self._glimpse: ImageFrame | None = None
        self._quiet_since = 0
        self._apply(self.options)
        self.outbox.push(ev.SessionOpened(session_id, self.options))

    @property
    def answering(self) -> bool:
        """Whether an answer is being made."""
        return self._answering.busy

    async def feed(self, event: ev.Input) -> None:
        """Take in one input, in order. Raises `InputError` if it cannot be done; then it has no effect."""
        async with self._feeding:
            for tap in self._taps:
                tap(event)
            await self._take(event)

    def refuse(self, failure: ev.ErrorRaised) -> None:
        """Tell the client that something it sent was not taken in."""
        self.outbox.push(failure)

    async def stop(self, reason: str = "client_cancelled") -> bool:
        """Stop the answer in progress, or being played, at once; ahead of inputs that wait. False if there was none."""
        return await self._answering.stop(reason)

    def played(self, item_id: str, audio_ms: float) -> None:
        """So much of an item was played; counts at once, ahead of inputs that wait."""
        self._answering.played(item_id, audio_ms)

    async def close(self) -> None:
        """End it: the answer, the transcripts and what the engine holds of it."""
        await self._answering.close("session_closed")
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
            case ev.CommitInput(min_audio_ms):
                await self._commit_by_hand(min_audio_ms)
            case ev.CreateResponse():
                await self._answering.respond(event)
            case ev.Cancel():
                await self._answering.cancel(event)
            case ev.ClearInput():
                self._forget_input()
                self.outbox.push(ev.InputCleared())
            case ev.UpdateOptions(changes):
                self._apply(apply_changes(self.options, changes, self._turn_detection))
                self.outbox.push(ev.OptionsUpdated(self.options))
            case ev.Sync(tag):
                self.outbox.push(ev.Synced(tag, self.answering))
            case ev.Reset():
                await self._answering.close("client_cancelled")
                self._forget_input()
                self.conversation.items.clear()
                await self._engine.release(self.conversation.id)
            case ev.PlaybackProgress(item_id, audio_ms):
                self._answering.played(item_id, audio_ms)
            case ev.AddItem() | ev.RemoveItem() | ev.RetrieveItem():
                self._edits.apply(event)
                self._bound_memory()
            case ev.Truncate(item_id):
                self._edits.check(event)
                answers = self._answering.answers
                if self.answering and answers.with_item(item_id) is answers.latest:
                    await self._answering.interrupt("client_cancelled")
                self._edits.apply(event)

    # --- the user's turn ------------------------------------------------------------------------

    async def _hear(self, chunk: AudioChunk) -> None:
        pcm = self._ear.resample(chunk)
        if self.options.turn_detection is None:
            if self._hearing.turn.duration_ms + pcm_part(pcm).duration_ms > LONGEST_TURN_MS:
                raise InputError(
                    f"The turn is longer than {LONGEST_TURN_MS // 1000} s: commit or clear it",
                    code="input_audio_buffer_too_long",
                    status=413,
                )
            if pcm:
                await self._hearing.add(pcm_part(pcm))
            return
        for window in self._ear.windows(pcm):
            probability, signals = await self._ear.judge(window)
            if self.options.vad_levels and len(self.outbox) < STALE_LEVELS:
                self.outbox.push(ev.VadLevel(self._ear.position, probability))
            if probability >= self._ear.options.threshold:
                self._answering.speech_end = self._clock()
            for signal in signals:
                await self._signal(signal)
            if self._ear.speaking and not self._paused:
                await self._hearing.add(pcm_part(self._ear.take()))
            await self._mind_silence()

    async def _mind_silence(self) -> None:
        """With an idle time, a user who has not spoken since the last answer was played is answered all the same."""
        position, idle_ms = self._ear.position, self._ear.options.idle_timeout_ms
        busy = self._ear.speaking or self.answering or self._answering.playing
        if idle_ms is None or busy or self._answering.answers.latest is None:
            self._quiet_since = position
        elif position - self._quiet_since >= idle_ms * INPUT_SAMPLE_RATE // 1000:
            start, self._quiet_since = self._quiet_since, position
            self.outbox.push(ev.IdleTimedOut(self._hearing.turn.id, start, position))
            await self._hearing.add(pcm_part(self._ear.take()))
            self._commit()
            self._answering.respond_next()

    async def _signal(self, signal: Signal) -> None:
        match signal:
            case SpeechBegan(at):
                await self._speech_began(at)
            case SpeechPaused():
                await self._hearing.add(pcm_part(self._ear.take()))
                self._paused = True
                self._hearing.guess(self._ear.consider)
            case SpeechResumed():
                self._paused = False
            case SpeechEnded(at):
                await self._speech_ended(at)

    async def _speech_began(self, at: int) -> None:
        turn = self._hearing.turn
        self.outbox.push(ev.SpeechStarted(turn.id, at))
        self._answering.speech_began(turn.id)
        if self._ear.options.interrupt_response:
            await self.stop("turn_detected")
        await self._hearing.add(pcm_part(self._ear.take(at)))
        await self._add_glimpse()

    async def _speech_ended(self, at: int) -> None:
        if not self._paused and (pcm := self._ear.take()):
            await self._hearing.add(pcm_part(pcm))
        self._paused = False
        self.outbox.push(ev.SpeechStopped(self._hearing.turn.id, at))
        self._commit()
        if self._ear.options.create_response:
            self._answering.respond_next()

    async def _see(self, frame: ImageFrame) -> None:
        """A frame belongs to the turn in progress; between turns the newest waits for the next one."""
        self._glimpse = frame
        if self.options.turn_detection is None or self._ear.speaking:
            await self._add_glimpse()

    async def _add_glimpse(self) -> None:
        if self._glimpse is not None:
            part = ImagePart(self._glimpse, detail="high" if self.options.hd_video else "auto")
            self._glimpse = None
            await self._hearing.add(part)

    async def _commit_by_hand(self, min_audio_ms: int) -> None:
        if pcm := self._ear.rest():
            await self._hearing.add(pcm_part(pcm))
        await self._add_glimpse()
        turn = self.conversation.pending_turn
        has = turn.duration_ms if turn else 0
        if not turn or (has < min_audio_ms and not turn.to_item().images and not turn.to_item().text):
            raise InputError(
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{max(min_audio_ms, 1)}ms of audio, but buffer only has {has:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        self._paused = False
        self._ear.forget()
        self._answering.speech_end = self._clock()
        self._commit()

    def _commit(self) -> None:
        item = self._hearing.commit()
        previous = self.conversation.previous_id(item.id)
        self.outbox.push(ev.InputCommitted(item.id, previous))
        self.outbox.push(ev.ItemAdded(item, previous))
        self.outbox.push(ev.ItemDone(item, previous))
        self._bound_memory()

    def _bound_memory(self) -> None:
        self.conversation.trim_media(KEPT_SPEECH_MS, KEPT_IMAGE_BYTES)

    def _forget_input(self) -> None:
        self._ear.forget()
        self._hearing.forget()
        self._glimpse, self._paused = None, False

    # --- options and events ---------------------------------------------------------------------

    def _apply(self, options: SessionOptions) -> None:
        if options.turn_detection is None and self.options.turn_detection is not None:
            self._forget_input()
        self.options = self._answering.options = options
        self.conversation.instructions = options.instructions
        self.conversation.language = options.language
        self.conversation.tools = options.tools
        if options.turn_detection is not None:
            self._ear.options = options.turn_detection
