"""One live conversation: the user's turn, at most one response that is generated, and the events to be sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from echosight import events as ev
from echosight.conversation import Conversation, ImagePart, Item, TextPart, pcm_part
from echosight.engines import GatedEngine
from echosight.errors import InputError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, ImageFrame
from echosight.options import SessionOptions, TurnDetectionOptions, apply_changes
from echosight.session.item_edits import ItemEditor
from echosight.session.outbox import Observer, Outbox
from echosight.session.responses import ResponseController
from echosight.session.snapshot import SessionSnapshot
from echosight.session.state import ConversationActivity, InputState, input_machine
from echosight.session.user_turn import UserInput
from echosight.turns.audio_input import AudioInput
from echosight.turns.detector import TurnSignal, VadSignal
from echosight.turns.vad import VadStream

KEPT_SPEECH_MS = 60_000
"""Raw speech that a conversation keeps once it is transcribed."""

KEPT_IMAGE_BYTES = 32 << 20
"""Encoded images that a conversation keeps: some ten minutes of a frame each second."""

MAX_TURN_MS = 600_000
"""Longest turn that a client commits by hand; server VAD ends its turns after `TurnDetectionOptions.max_turn_ms`."""

MAX_QUEUED_LEVELS = 32
"""Unread events from which on VAD levels are left out: a level meter that is so late is of no use."""


class Session:
    """A conversation between one client and one engine.

    `feed` takes in the client's inputs one at a time; `next_event` gives what the client is to be sent. `observers` see
    every input and output, for recordings and metrics. `clock` (seconds) tells how much of a response can have been
    played, and is used for nothing else that a client sees. A session adopts the `snapshot` that it is given.
    """

    def __init__(
        self,
        session_id: str,
        engine: GatedEngine,
        vad: VadStream,
        options: SessionOptions | None = None,
        *,
        snapshot: SessionSnapshot | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = session_id
        self.options = snapshot.options if snapshot is not None else options or SessionOptions()
        self.conversation = snapshot.conversation if snapshot is not None else Conversation()
        self.outbox = Outbox(observers)
        self._engine = engine
        self._observers = observers
        self._clock = clock
        self._default_detection = (options or self.options).turn_detection or TurnDetectionOptions()
        self._audio_input = AudioInput(vad, self._default_detection)
        activity = ConversationActivity()
        self._user_input = UserInput(engine, self.conversation, self.outbox, activity)
        self._responses = ResponseController(
            session_id, engine, self.conversation, self._user_input, self.outbox, activity, clock
        )
        self._item_editor = ItemEditor(self.conversation, self._responses.playback, self._user_input, self.outbox)
        self._input = input_machine()
        self._feed_lock = asyncio.Lock()
        self._latest_frame: ImageFrame | None = None
        self._idle_since = 0
        if snapshot is not None:
            self._responses.playback.restore(snapshot.playback)
        self._apply_options(self.options)
        self.outbox.push(ev.SessionOpened(session_id, self.options))

    # --- what runs it ---------------------------------------------------------------------------

    @property
    def generating(self) -> bool:
        """Whether a response is generated on the conversation."""
        return self._responses.generating

    @property
    def closed(self) -> bool:
        """Whether it sends no more events."""
        return self.outbox.closed

    async def feed(self, event: ev.Input) -> None:
        """Take in one input, in order. Raises `InputError` if it is refused; then it has no effect."""
        async with self._feed_lock:
            for observe in self._observers:
                observe(event)
            await self._dispatch(event)

    async def next_event(self) -> ev.Output | None:
        """The next event for the client, which then counts as sent; None once closed. For one reader at a time."""
        event = await self.outbox.get()
        if isinstance(event, ev.Delta):
            self._responses.on_sent(event)
        return event

    async def events(self) -> AsyncIterator[ev.Output]:
        """All events, as `next_event` gives them."""
        while (event := await self.next_event()) is not None:
            yield event

    def report_error(self, error: ev.ErrorRaised) -> None:
        """Announce that an input was refused."""
        self.outbox.push(error)

    async def stop(self, reason: str = "client_cancelled") -> bool:
        """Stop the response that is generated or playing, ahead of inputs that wait. False if there is none."""
        return await self._responses.stop(reason)

    def report_played(self, item_id: str, audio_ms: float) -> None:
        """The client played `audio_ms` of an item; counts at once, ahead of inputs that wait."""
        self._responses.report_played(item_id, audio_ms)

    def snapshot(self, replay_cursor: str | None = None) -> SessionSnapshot:
        """The session as it is now. What a response that is generated has said counts as far as it was played."""
        latest = self._responses.latest
        items: list[Item] = []
        for item in self.conversation.items:
            if item.status == "in_progress":
                played = latest.played_parts() if latest is not None and item.id == latest.message_id else item.parts
                item = replace(item, parts=played, status="incomplete")
            items.append(item)
        conversation = replace(self.conversation, items=items, pending_turn=None)
        playback = self._responses.playback.states(self._clock())
        return SessionSnapshot(self.options, conversation, playback, replay_cursor)

    async def close(self) -> None:
        """End it: cancel responses and transcriptions, and release what the engine holds of it."""
        await self._responses.close("session_closed")
        await self._user_input.close()
        await self._engine.release(self.conversation.id)
        self.outbox.close()

    async def _dispatch(self, event: ev.Input) -> None:
        match event:
            case ev.Audio(chunk):
                await self._on_audio(chunk)
            case ev.Image(frame):
                await self._on_image(frame)
            case ev.Text(text):
                await self._user_input.add(TextPart(text))
            case ev.CommitInput(min_audio_ms):
                await self._commit_manually(min_audio_ms)
            case ev.CreateResponse():
                await self._responses.respond(event)
            case ev.Cancel():
                await self._responses.cancel(event)
            case ev.ClearInput():
                self._clear_input()
                self.outbox.push(ev.InputCleared())
            case ev.UpdateOptions(changes):
                self._apply_options(apply_changes(self.options, changes, self._default_detection))
                self.outbox.push(ev.OptionsUpdated(self.options))
            case ev.Sync(tag):
                self.outbox.push(ev.Synced(tag, self.generating))
            case ev.Reset():
                await self._reset()
            case ev.PlaybackProgress(item_id, audio_ms):
                self._responses.report_played(item_id, audio_ms)
            case ev.AddItem() | ev.RemoveItem() | ev.RetrieveItem():
                self._item_editor.apply(event)
                self._trim_history()
            case ev.Truncate():
                await self._truncate(event)

    # --- the user's turn ------------------------------------------------------------------------

    async def _on_audio(self, chunk: AudioChunk) -> None:
        pcm = self._audio_input.resample(chunk)
        if self.options.turn_detection is None:
            await self._add_uncommitted_audio(pcm)
            return
        for window in self._audio_input.windows(pcm):
            probability, signals = await self._audio_input.process_window(window)
            if self.options.vad_levels and len(self.outbox) < MAX_QUEUED_LEVELS:
                self.outbox.push(ev.VadLevel(self._audio_input.position, probability))
            if probability >= self._audio_input.options.threshold:
                self._responses.speech_end = self._clock()
            for signal in signals:
                await self._on_signal(signal)
            if self._input.state is InputState.SPEAKING:
                await self._user_input.add(pcm_part(self._audio_input.take_buffered()))
            await self._check_idle_timeout()

    async def _add_uncommitted_audio(self, pcm: bytes) -> None:
        part = pcm_part(pcm)
        if self._user_input.turn.duration_ms + part.duration_ms > MAX_TURN_MS:
            raise InputError(
                f"The turn is longer than {MAX_TURN_MS // 1000} s: commit or clear it",
                code="input_audio_buffer_too_long",
                status=413,
            )
        if pcm:
            await self._user_input.add(part)

    async def _on_signal(self, signal: TurnSignal) -> None:
        in_pause = self._input.state is InputState.PAUSED
        self._input.advance(signal.kind)
        match signal.kind:
            case VadSignal.START:
                await self._on_speech_started(signal.sample)
            case VadSignal.PAUSE:
                await self._user_input.add(pcm_part(self._audio_input.take_buffered()))
                self._user_input.speculate_transcript(self._audio_input.update_endpointing)
            case VadSignal.RESUME:
                pass
            case VadSignal.END:
                await self._on_speech_stopped(signal.sample, in_pause)

    async def _on_speech_started(self, sample: int) -> None:
        turn = self._user_input.turn
        self.outbox.push(ev.SpeechStarted(turn.id, sample))
        self._responses.speech_started(turn.id)
        if self._audio_input.options.interrupt_response:
            await self.stop("turn_detected")
        await self._user_input.add(pcm_part(self._audio_input.take_buffered(sample)))
        await self._add_latest_frame()

    async def _on_speech_stopped(self, sample: int, in_pause: bool) -> None:
        """After a pause the buffer holds silence, which becomes the next turn's pre-roll."""
        if not in_pause and (pcm := self._audio_input.take_buffered()):
            await self._user_input.add(pcm_part(pcm))
        self.outbox.push(ev.SpeechStopped(self._user_input.turn.id, sample))
        self._commit()
        if self._audio_input.options.create_response:
            self._responses.respond_after_current()

    async def _check_idle_timeout(self) -> None:
        """With an idle timeout, respond to a user who has not spoken since the latest response was played."""
        position, timeout_ms = self._audio_input.position, self._audio_input.options.idle_timeout_ms
        active = self._input.state is not InputState.LISTENING or self.generating or self._responses.playing
        if timeout_ms is None or active or self._responses.latest is None:
            self._idle_since = position
        elif position - self._idle_since >= timeout_ms * INPUT_SAMPLE_RATE // 1000:
            start, self._idle_since = self._idle_since, position
            self.outbox.push(ev.IdleTimedOut(self._user_input.turn.id, start, position))
            await self._user_input.add(pcm_part(self._audio_input.take_buffered()))
            self._commit()
            self._responses.respond_after_current()

    async def _on_image(self, frame: ImageFrame) -> None:
        """A frame belongs to the turn in progress; between turns the newest one waits for the next turn."""
        self._latest_frame = frame
        if self.options.turn_detection is None or self._input.state is not InputState.LISTENING:
            await self._add_latest_frame()

    async def _add_latest_frame(self) -> None:
        if self._latest_frame is not None:
            part = ImagePart(self._latest_frame, detail="high" if self.options.hd_video else "auto")
            self._latest_frame = None
            await self._user_input.add(part)

    async def _commit_manually(self, min_audio_ms: int) -> None:
        if pcm := self._audio_input.flush():
            await self._user_input.add(pcm_part(pcm))
        await self._add_latest_frame()
        turn = self.conversation.pending_turn
        duration_ms = turn.duration_ms if turn else 0
        if not turn or (duration_ms < min_audio_ms and not turn.has_images_or_text):
            raise InputError(
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{max(min_audio_ms, 1)}ms of audio, but buffer only has {duration_ms:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        self._input.reset()
        self._audio_input.clear()
        self._responses.speech_end = self._clock()
        self._commit()

    def _commit(self) -> None:
        item = self._user_input.commit()
        previous = self.conversation.previous_id(item.id)
        self.outbox.push(ev.InputCommitted(item.id, previous))
        self.outbox.push(ev.ItemAdded(item, previous))
        self.outbox.push(ev.ItemDone(item, previous))
        self._trim_history()

    def _clear_input(self) -> None:
        self._input.reset()
        self._audio_input.clear()
        self._user_input.clear()
        self._latest_frame = None

    # --- the conversation and the options -------------------------------------------------------

    async def _truncate(self, event: ev.Truncate) -> None:
        self._item_editor.validate_truncate(event)
        latest = self._responses.latest
        if latest is not None and latest.generating and latest.message_id == event.item_id:
            await self.stop("client_cancelled")
        self._item_editor.apply(event)

    async def _reset(self) -> None:
        await self._responses.close("client_cancelled")
        self._clear_input()
        await self._user_input.close()  # a transcription must not outlive what the engine is about to release
        self.conversation.items.clear()
        await self._engine.release(self.conversation.id)

    def _trim_history(self) -> None:
        self.conversation.trim_media(KEPT_SPEECH_MS, KEPT_IMAGE_BYTES)

    def _apply_options(self, options: SessionOptions) -> None:
        if options.turn_detection is None and self.options.turn_detection is not None:
            self._clear_input()
        self.options = self._responses.options = options
        self.conversation.instructions = options.instructions
        self.conversation.language = options.language
        self.conversation.tools = options.tools
        if options.turn_detection is not None:
            self._audio_input.options = options.turn_detection
