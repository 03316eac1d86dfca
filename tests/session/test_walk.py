"""A session under inputs in any order: hypothesis walks it, and what must always hold is checked after each step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from echosight import events as ev
from echosight.conversation import AudioPart, Conversation, Item, Part, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import EngineFailure, InputError
from echosight.media import ImageFrame, Transcript
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.server.engine_host import EngineHost
from echosight.session.session import Session
from echosight.session.snapshot import SessionSnapshot
from tests.fakes import ScriptedEngine, words
from tests.rig import Clock, LoudnessVad, loud, quiet


class Defect(RuntimeError):
    """What an engine's own bug may raise."""


FRAME = ImageFrame(b"jpeg", "image/jpeg", 2, 2)
SCRIPTS: dict[str, list[Chunk | Exception]] = {
    "speech": [*words("one two three four five six")],
    "text": [TextChunk("only "), TextChunk("text"), GenerationSummary(finish="length")],
    "call": [ToolCallChunk("c1", "look", "{"), ToolCallChunk("c1", "look", "}")],
    "nothing": [],
    "failure": [TextChunk("so far"), EngineFailure("the worker died")],
    "early failure": [EngineFailure("the worker died at once")],
    "defect": [Defect("a defect")],
}


class WalkEngine(ScriptedEngine):
    """An engine that checks how it is used: one writer for each conversation, and no more responses than slots."""

    def __init__(self) -> None:
        super().__init__(gate=asyncio.Semaphore(0), capacity=3)
        self.next_script = "speech"
        self.writers: dict[str, str] = {}
        self.violations: list[str] = []
        self.running = 0

    @contextlib.contextmanager
    def writes(self, conversation: Conversation, what: str) -> Any:
        if conversation.id in self.writers:
            self.violations.append(f"{what} while {self.writers[conversation.id]} goes on")
        self.writers[conversation.id] = what
        try:
            yield
        finally:
            self.writers.pop(conversation.id, None)

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        with self.writes(conversation, "prefill"):
            await asyncio.sleep(0)
            return await super().prefill(conversation, part)

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        if self.next_script == "early failure":
            raise EngineFailure("no transcript")
        return await super().finalize_transcript(conversation, turn)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        self.running += 1
        try:
            if self.running > self.capacity:
                self.violations.append("more responses than slots")
            with self.writes(conversation, "generate"):
                assert self.gate is not None
                for chunk in SCRIPTS[self.next_script]:
                    await self.gate.acquire()
                    if isinstance(chunk, Exception):
                        raise chunk
                    yield chunk
        finally:
            self.running -= 1


class SessionWalk(RuleBasedStateMachine):
    """Inputs of a client, in any order, with an engine that generates when it is let and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.seen: list[ev.Output] = []
        self.surprises: list[Any] = []
        """Exceptions that were neither refusals nor an engine's: defects of the session."""
        self.runner.get_loop().set_exception_handler(lambda _, context: self.surprises.append(context))
        self.logs = [logging.getLogger(f"echosight.session.{name}") for name in ("generation", "user_turn")]
        for log in self.logs:
            log.addFilter(self._keep_surprise)

    def _keep_surprise(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and not isinstance(error, Defect):
            self.surprises.append(error)
        return False

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def and_settle() -> Any:
            try:
                return await work
            finally:
                for _ in range(30):
                    await asyncio.sleep(0)

        return self.runner.run(and_settle())

    def feed(self, *inputs: ev.Input) -> None:
        async def feed() -> None:
            for event in inputs:
                with contextlib.suppress(InputError):
                    await self.session.feed(event)

        self.run(feed())

    @initialize(detection=st.booleans(), interrupt=st.booleans(), idle=st.booleans())
    def open(self, detection: bool, interrupt: bool, idle: bool) -> None:
        options = TurnDetectionOptions(
            min_endpointing_delay_ms=256, interrupt_response=interrupt, idle_timeout_ms=900 if idle else None
        )
        self.run(self._open(SessionOptions(turn_detection=options if detection else None)))

    async def _open(self, options: SessionOptions) -> None:
        self.engine, self.clock = WalkEngine(), Clock()
        self.session = Session(
            "s", EngineHost(self.engine), LoudnessVad(), options, observers=[self._observe], clock=self.clock
        )

    def _observe(self, event: ev.Input | ev.Output) -> None:
        if isinstance(event, ev.Output | ev.Reset):
            self.seen.append(event)  # type: ignore[arg-type]

    # --- what the client does -------------------------------------------------------------------

    @rule(ms=st.sampled_from([40, 200, 700]))
    def speak(self, ms: int) -> None:
        self.feed(loud(ms))

    @rule(ms=st.sampled_from([40, 200, 700]))
    def be_silent(self, ms: int) -> None:
        self.feed(quiet(ms))

    @rule()
    def type_something(self) -> None:
        self.feed(ev.Text("hello"))

    @rule()
    def show_something(self) -> None:
        self.feed(ev.Image(FRAME))

    @rule(min_audio_ms=st.sampled_from([0, 100]))
    def commit(self, min_audio_ms: int) -> None:
        self.feed(ev.CommitInput(min_audio_ms))

    @rule()
    def clear(self) -> None:
        self.feed(ev.ClearInput())

    @rule(interrupt=st.booleans(), own_input=st.booleans())
    def respond(self, interrupt: bool, own_input: bool) -> None:
        given = (Item("user", (AudioPart(b"\1\1" * 1600, duration_ms=100),)),) if own_input else None
        self.feed(ev.CreateResponse(interrupt=interrupt, input=given))

    @rule(own_input=st.booleans())
    def respond_out_of_band(self, own_input: bool) -> None:
        given = (Item("user", (TextPart("a question"),)),) if own_input else None
        self.feed(ev.CreateResponse(conversation=False, input=given))

    @rule(index=st.integers(0, 3), strict=st.booleans())
    def cancel(self, index: int, strict: bool) -> None:
        ids: list[str | None] = [None, "unknown", *[e.response_id for e in self.started[-2:]]]
        self.feed(ev.Cancel(ids[index % len(ids)], strict))

    @rule(index=st.integers(0, 9), ms=st.sampled_from([0, 150, 400, 5000]))
    def truncate(self, index: int, ms: int) -> None:
        self.feed(ev.Truncate(self.some_item(index), ms))

    @rule(index=st.integers(0, 9), ms=st.sampled_from([0, 150, 400]))
    def report_played(self, index: int, ms: int) -> None:
        self.feed(ev.PlaybackProgress(self.some_item(index), ms))

    @rule(role=st.sampled_from(["user", "assistant", "system"]), at=st.integers(0, 9), spoken=st.booleans())
    def add_item(self, role: Any, at: int, spoken: bool) -> None:
        part: Part = AudioPart(b"\1\1" * 1600, duration_ms=100) if spoken else TextPart("added")
        self.feed(ev.AddItem(Item(role, (part,)), [None, "root", self.some_item(at)][at % 3]))

    @rule(index=st.integers(0, 9))
    def remove_item(self, index: int) -> None:
        self.feed(ev.RemoveItem(self.some_item(index)))

    @rule(interrupt=st.booleans())
    def change_options(self, interrupt: bool) -> None:
        self.feed(ev.UpdateOptions({"turn_detection": {"interrupt_response": interrupt}, "instructions": "Be kind."}))

    @rule()
    def detect_no_turns(self) -> None:
        self.feed(ev.UpdateOptions({"turn_detection": None}))

    @rule()
    def reset(self) -> None:
        self.feed(ev.Reset())

    @rule()
    def lose_the_client(self) -> None:
        self.run(self.session.stop("client_gone"))

    @rule(count=st.integers(1, 40))
    def read(self, count: int) -> None:
        async def read() -> None:
            for _ in range(min(count, len(self.session.outbox))):
                await self.session.next_event()

        self.run(read())

    # --- what happens around it -----------------------------------------------------------------

    @rule(chunks=st.integers(1, 8))
    def let_the_engine_generate(self, chunks: int) -> None:
        async def release() -> None:
            for _ in range(chunks):
                self.engine.gate.release()  # type: ignore[union-attr]

        self.run(release())

    @rule(script=st.sampled_from(sorted(SCRIPTS)))
    def choose_what_it_does_next(self, script: str) -> None:
        self.engine.next_script = script

    @rule(seconds=st.sampled_from([0.05, 0.4, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def write_it_down(self) -> None:
        snapshot = self.session.snapshot("event_7")
        assert SessionSnapshot.from_json(snapshot.to_json()) == snapshot
        assert all(item.status != "in_progress" for item in snapshot.conversation)

    # --- what must always hold ------------------------------------------------------------------

    @property
    def started(self) -> list[ev.ResponseStarted]:
        return [event for event in self.seen if isinstance(event, ev.ResponseStarted)]

    @property
    def ended(self) -> list[str]:
        return [event.response_id for event in self.seen if isinstance(event, ev.ResponseEnded)]

    def some_item(self, index: int) -> str:
        ids = [item.id for item in self.session.conversation] or ["unknown"]
        return ids[index % len(ids)]

    @invariant()
    @precondition(lambda self: hasattr(self, "session"))
    def nothing_unexpected_was_raised(self) -> None:
        assert self.surprises == []
        assert self.engine.violations == []

    @invariant()
    @precondition(lambda self: hasattr(self, "session"))
    def each_response_is_announced_once_and_ends_once(self) -> None:
        started = [event.response_id for event in self.started]
        assert len(set(started)) == len(started)
        assert len(set(self.ended)) == len(self.ended)
        assert set(self.ended) <= set(started)
        current = {event.response_id for event in self.started if event.conversation} - set(self.ended)
        assert len(current) <= 1, "two responses at once on one conversation"
        assert self.session.generating == bool(current)

    @invariant()
    @precondition(lambda self: hasattr(self, "session"))
    def deltas_come_only_between(self) -> None:
        open_responses: set[str] = set()
        for event in self.seen:
            match event:
                case ev.ResponseStarted(response_id):
                    open_responses.add(response_id)
                case ev.ResponseEnded(response_id):
                    open_responses.discard(response_id)
                case ev.TextDelta() | ev.SpeechDelta() | ev.ToolCallDelta():
                    assert event.response_id in open_responses
                case _:
                    pass

    @invariant()
    @precondition(lambda self: hasattr(self, "session"))
    def no_item_is_lost(self) -> None:
        """The events alone tell what the conversation holds, in which order."""
        out_of_band = {event.response_id for event in self.started if not event.conversation}
        ids: list[str] = []
        for event in self.seen:
            match event:
                case ev.ItemAdded(item, previous, response_id) if response_id not in out_of_band:
                    ids.insert(0 if previous is None else ids.index(previous) + 1, item.id)
                case ev.ItemRemoved(item_id):
                    ids.remove(item_id)
                case ev.Reset():
                    ids.clear()
                case _:
                    pass
        # A reset is seen as an input: the end of the response that it cancels comes before the items go.
        if not isinstance(self.seen[-1], ev.Reset):
            assert [item.id for item in self.session.conversation] == ids

    @invariant()
    @precondition(lambda self: hasattr(self, "session"))
    def what_is_not_generated_is_complete(self) -> None:
        if not self.session.generating:
            assert all(item.status != "in_progress" for item in self.session.conversation)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.run(self.session.close())
            assert {event.response_id for event in self.started} == set(self.ended)
            assert self.engine.running == 0
            assert self.runner.run(_other_tasks()) == set()
            assert self.surprises == []
        self.runner.close()
        for log in self.logs:
            log.removeFilter(self._keep_surprise)


async def _other_tasks() -> set[Any]:
    return asyncio.all_tasks() - {asyncio.current_task()}


SessionWalk.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSession = SessionWalk.TestCase
