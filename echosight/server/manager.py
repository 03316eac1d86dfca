"""StreamManager: the sessions of all callers, and the one engine that answers them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from echosight import events as ev
from echosight.conversation import Item, new_id
from echosight.engines import Engine
from echosight.engines.runtime.worker import Worker
from echosight.errors import EchoSightError, EngineFull, InputError, SetupError
from echosight.media import AudioChunk
from echosight.options import SessionOptions
from echosight.server.engine_host import EngineHost
from echosight.server.metrics import Metrics
from echosight.server.recording import Recorder
from echosight.session.outbox import Observer
from echosight.session.session import Session
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad
from echosight.wire.echosight_messages import CustomOptions, option_changes

log = logging.getLogger(__name__)

T = TypeVar("T")

LEAD_MS = 1_000
"""How far live speech is sent ahead of its playing: covers a slow network, and dies out soon after a stop."""

LARGE_BYTES = 64 * 1024
"""Messages that may take longer to read than others should wait: pictures and whole recordings."""

HANDOVER_S = 1.0
"""A reader waits so long for the one before it: who comes back at once may find his former self still leaving."""

GIVE_WAY_S = 10
"""A session that nobody is connected to, and that was left alone for so long, may be ended to make room."""


@dataclass(slots=True)
class _Place:
    """A session and who is at its ends. Left alone since `touched`, it is kept for `patience` seconds."""

    session: Session
    close: Callable[[], Awaitable[None]]
    readers: int = 0
    sockets: int = 0
    touched: float = 0.0
    patience: float = 0.0
    vacant: asyncio.Event = field(default_factory=asyncio.Event)


class StreamManager:
    """Keeps one session a caller. A caller is a key: nobody reaches the session of another.

    Sessions live from a caller's first request until it has been silent for `idle_timeout_s`, or has lost its
    socket for `linger_s`. All tasks of a session belong to it, not to the request that caused them.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        voice_activity: BatchedVad,
        metrics: Metrics,
        journal: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.failed: SetupError | None = None
        self.ready = False
        self.on_loaded: Callable[[], None] = lambda: None
        """Called when loading is over, well or not."""
        self._voice_activity = voice_activity
        self._metrics = metrics
        self._journal = journal
        self._clock = clock
        self._reader = Worker("reader")
        self._host = EngineHost(engine)
        self._places: dict[str, _Place] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False
        metrics.count_sessions(lambda: self.sessions)

    # --- life -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the engine beside, so that /health can tell about it; on leaving, end all sessions."""
        self._tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._expire())]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for key in list(self._places):
                await self.end(key)
            await self.engine.close()
            await self._journal.close()
            await self._reader.close()

    def leave(self) -> None:
        """The server is about to end. Readers of an answer without a socket, which would be told, are told so."""
        self._leaving = True
        for place in self._places.values():
            if place.readers and not place.sockets:
                place.session.outbox.close()

    async def _load(self) -> None:
        try:
            await self.engine.start()
            self.ready = True
            log.info("%s is ready", self.engine.name)
        except SetupError as error:
            self.failed = error
            log.error("%s", error.message)
        self.on_loaded()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = self._clock()
            for key in [k for k, p in self._places.items() if p.touched + p.patience <= now and not self._in_use(p)]:
                log.info("session %s expired", self._places[key].session.id)
                await self.end(key)

    @staticmethod
    def _in_use(place: _Place) -> bool:
        return place.readers > 0 or place.sockets > 0

    # --- sessions -------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        return len(self._places)

    @property
    def capacity(self) -> int:
        """Sessions there can be at once."""
        return min(self.engine.capacity, self.settings.max_sessions or self.engine.capacity)

    async def open(self, key: str, options: SessionOptions | None = None) -> Session:
        """The caller's session, a new one where there is none. Raises `EngineFull`."""
        place = self._places.get(key)
        if place is not None and place.session.closed:
            await self.end(key)
            place = None
        if place is None:
            await self._make_room()
            place = self._new_place(options or self.live_options())
            self._places[key] = place
        place.touched, place.patience = self._clock(), self.settings.idle_timeout_s
        return place.session

    @contextlib.asynccontextmanager
    async def connect(
        self, key: str, options: SessionOptions | None = None, *, waits: bool = False
    ) -> AsyncIterator[Session]:
        """The caller's session for as long as a socket lasts. A caller has one socket that reads at a time.

        When the socket is lost its answer stops, unless it `waits`; the session is kept `linger_s` for the caller to
        come back.
        """
        place = await self._claim(key, options)
        session = place.session
        place.sockets += 1
        try:
            yield session
        finally:
            place.sockets -= 1
            place.readers -= 1
            place.touched, place.patience = self._clock(), self.settings.linger_s
            if not waits:
                await session.stop("client_gone")
            if self.settings.linger_s == 0:
                await self.end(key)
            place.vacant.set()

    def live_options(self) -> SessionOptions:
        """What a session starts with. Speech keeps close to its playing, so that stopping it is heard."""
        options = self.settings.session_options()
        return replace(options, response=replace(options.response, max_playout_lead_ms=LEAD_MS))

    def _new_place(self, options: SessionOptions) -> _Place:
        session_id = new_id("sess")
        recording = self._journal.open(session_id)
        taps: list[Observer] = [self._measure, *([_while_wanted(recording.write)] if recording else [])]
        voice = self._voice_activity.stream()
        session = Session(session_id, self._host, voice, options, observers=taps)

        async def close() -> None:
            await session.close()
            if recording is not None:
                await recording.close()

        return _Place(session, close)

    def _measure(self, event: ev.Input | ev.Output) -> None:
        match event:
            case ev.ResponseEnded():
                self._metrics.turn_ended(event)
            case ev.ErrorRaised():
                self._metrics.failure(event)
            case _:
                pass

    async def _make_room(self) -> None:
        """Callers who are gone, or have not been heard of for a while, give way; the longest gone first."""
        if not self.ready:
            raise EngineFull(self.failed.message if self.failed else "The engine is loading", retry_after=2)
        while len(self._places) >= self.capacity:
            now = self._clock()
            gone = [(p.touched, k) for k, p in self._places.items() if not self._in_use(p)]
            since, key = min(gone, default=(now, ""))
            if now - since < GIVE_WAY_S:
                raise EngineFull(retry_after=max(1, round(GIVE_WAY_S - (now - since))))
            await self.end(key)

    async def end(self, key: str) -> None:
        """The caller's session is over, if there is one."""
        place = self._places.pop(key, None)
        if place is not None:
            await place.close()

    async def _vacancy(self, key: str, options: SessionOptions | None = None) -> _Place:
        """The caller's place, once nobody reads there."""
        await self.open(key, options)
        if (place := self._places[key]).readers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANDOVER_S):
                    await place.vacant.wait()
            await self.open(key, options)  # the reader's session may have ended with it
            place = self._places[key]
        if place.readers:
            raise InputError("This caller's answers are being read already", code="already_reading", status=409)
        return place

    async def _claim(self, key: str, options: SessionOptions | None = None) -> _Place:
        place = await self._vacancy(key, options)
        place.readers += 1
        place.vacant.clear()
        return place

    async def read(self, size: int, work: Callable[[], T]) -> T:
        """Have a message of `size` bytes read: at once, or in a thread beside the event loop where it is large."""
        return work() if size < LARGE_BYTES else await self._reader.call(work)

    # --- what the EchoSight protocol asks for ---------------------------------------------------

    async def prefill(self, key: str, inputs: Iterable[ev.Input]) -> bool:
        """Take in what the caller says and shows. True while its answer is being made."""
        session = await self.open(key)
        for event in inputs:
            await session.feed(event)
        return session.generating

    async def may_read(self, key: str) -> None:
        """Find out in time whether `generate` would refuse. Raises `EngineFull`, or `InputError` (409)."""
        await self._vacancy(key)

    async def generate(self, key: str, item: Item | None = None) -> AsyncGenerator[ev.Output]:
        """The events of the caller's next answer, to its end; with `item`, of the answer to just that turn.

        Closing it stops the answer. Raises `InputError` (409) where the caller's answers are being read already, and
        `EchoSightError` where the server ends before the answer.
        """
        place = await self._claim(key)
        session = place.session
        ended = False
        try:
            session.outbox.skip_to_latest_response()
            if item is not None:
                await session.stop()
                session.outbox.skip_to_latest_response()
                await session.feed(ev.AddItem(item))
                await session.feed(ev.CreateResponse({"max_playout_lead_ms": None}, interrupt=True))
            while not self._leaving and (event := await session.next_event()) is not None:
                ended = isinstance(event, ev.ResponseEnded)
                yield event
                if ended:
                    return
            raise EchoSightError("The server is stopping", code="server_stopping")
        finally:
            place.readers -= 1
            place.touched = self._clock()
            if not ended:
                await session.stop("client_gone")
            place.vacant.set()

    async def stop(self, key: str) -> None:
        """Stop the caller's own answer, if there is one."""
        if (place := self._places.get(key)) is not None:
            await place.session.stop()

    async def feedback(self, record: Mapping[str, Any]) -> None:
        """Keep what a user thought of an answer."""
        await self._journal.feedback(record)

    async def upload_customized_audio(self, key: str, sample: AudioChunk | None) -> None:
        """A voice to imitate in the caller's session; None: the default voice."""
        session = await self.open(key)
        await session.feed(ev.UpdateOptions({"response": {"voice_sample": sample}}))

    async def update_customized_options(self, key: str, chosen: CustomOptions) -> None:
        """The caller's choices, for its own session."""
        session = await self.open(key)
        await session.feed(ev.UpdateOptions(option_changes(chosen, session.options)))

    async def sys_prompt_init(self, key: str) -> None:
        """Begin the caller's conversation anew, under the instructions it chose."""
        session = await self.open(key)
        await session.feed(ev.Reset())


def _while_wanted(write: Observer) -> Observer:
    """A recording's tap that is closed while the client does not want to be recorded."""
    wanted = True

    def tap(event: ev.Input | ev.Output) -> None:
        nonlocal wanted
        if isinstance(event, ev.OptionsUpdated):
            wanted = event.options.record
        if wanted:
            write(event)

    return tap
