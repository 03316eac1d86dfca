"""StreamManager: the engine and the sessions of all clients, with one method for each request of a client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from echosight import events as ev
from echosight.conversation import Item, new_id
from echosight.engines import Engine
from echosight.engines.runtime.worker import Worker
from echosight.errors import EchoSightError
from echosight.media import AudioChunk
from echosight.options import SessionOptions
from echosight.server.engine_host import EngineHost
from echosight.server.metrics import Metrics
from echosight.server.observers import if_recording_allowed, measure
from echosight.server.recording import Recorder
from echosight.server.sessions import Client, SessionRegistry
from echosight.session.session import Session
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad
from echosight.wire.echosight_messages import CustomOptions, option_changes

T = TypeVar("T")

MAX_PLAYOUT_LEAD_MS = 1_000
"""How far live speech is sent ahead of its playing: covers a slow network, and dies out soon after a stop."""

LARGE_BYTES = 64 * 1024
"""Larger messages (images, whole recordings) are parsed in a thread, so that other clients need not wait."""


class StreamManager:
    """The server's facade: every method acts on the session of one client, and on no other.

    Tasks of a session belong to the session, not to the request that started them.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        vad: BatchedVad,
        metrics: Metrics,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.engine = EngineHost(engine)
        self.sessions = SessionRegistry(self._new_session, self.engine, settings, clock)
        self._vad = vad
        self._metrics = metrics
        self._recorder = recorder
        self._parser = Worker("parser")
        metrics.count_sessions(lambda: len(self.sessions))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the engine in the background, so that /health can report on it; on leaving, end all sessions."""
        tasks = [asyncio.create_task(self.engine.load()), asyncio.create_task(self.sessions.expire())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.sessions.close()
            await self.engine.close()
            await self._recorder.close()
            await self._parser.close()

    def begin_shutdown(self) -> None:
        """Shutdown has begun: end SSE streams with an error record (uvicorn closes WebSockets itself)."""
        self.sessions.begin_shutdown()

    def live_options(self) -> SessionOptions:
        """Options of a new session. Its speech stays close to its playing, so that a stop is heard at once."""
        options = self.settings.session_options()
        return replace(options, response=replace(options.response, max_playout_lead_ms=MAX_PLAYOUT_LEAD_MS))

    def _new_session(self, options: SessionOptions | None) -> tuple[Session, Callable[[], Awaitable[None]]]:
        session_id = new_id("sess")
        recording = self._recorder.open(session_id)
        observers = [measure(session_id, self._metrics)]
        if recording is not None:
            observers.append(if_recording_allowed(recording.write))
        session = Session(
            session_id, self.engine, self._vad.stream(), options or self.live_options(), observers=observers
        )

        async def close() -> None:
            await session.close()
            if recording is not None:
                await recording.close()

        return session, close

    async def parse(self, size: int, read: Callable[[], T]) -> T:
        """Parse a message of `size` bytes: at once, or in a thread where it is large."""
        return read() if size < LARGE_BYTES else await self._parser.call(read)

    # --- requests of the EchoSight protocol -----------------------------------------------------

    async def prefill(self, client: Client, inputs: Iterable[ev.Input]) -> bool:
        """Take in the client's inputs. True while its response is generated. Raises `EngineFull`, `InputError`."""
        session = (await self.sessions.open(client)).session
        for event in inputs:
            await session.feed(event)
        return session.generating

    async def check_readable(self, client: Client) -> None:
        """Raises `EngineFull`, or `InputError` (409) where the client's responses are read by another connection."""
        await self.sessions.wait_for_reader(client)

    async def generate(self, client: Client, item: Item | None = None) -> AsyncGenerator[ev.Output]:
        """The events of the client's next response, to its end; with `item`, of the response to just that item.

        With `item`, the first event comes once a generation slot is free. Closing the generator stops the response.
        Raises as `check_readable`, and `EchoSightError` where the server stops before the response ends.
        """
        async with self.sessions.read(client) as entry, contextlib.AsyncExitStack() as slot:
            session = entry.session
            reached, ended = item is None, False
            try:
                session.outbox.skip_to_latest_response()
                if item is not None:
                    await session.stop()
                    await slot.enter_async_context(self.engine.reserve(session.conversation.id))
                    session.outbox.skip_to_latest_response()
                    await session.feed(ev.AddItem(item))
                    await session.feed(ev.CreateResponse({"max_playout_lead_ms": None}, interrupt=True))
                while not self.sessions.stopping and (event := await session.next_event()) is not None:
                    # An earlier response that is still unread may come before the one to `item`.
                    reached = reached or (item is not None and _responds_to(event, item))
                    if reached:
                        ended = isinstance(event, ev.ResponseEnded)
                        yield event
                    if ended:
                        return
                raise EchoSightError("The server is stopping", code="server_stopping")
            finally:
                if not ended:
                    await session.stop("client_gone")

    async def stop(self, client: Client) -> None:
        """Stop the client's response, if there is one."""
        if (entry := self.sessions.get(client.key)) is not None:
            await entry.session.stop()

    async def feedback(self, record: Mapping[str, Any]) -> None:
        """Append a user's rating of a response to the feedback file."""
        await self._recorder.feedback(record)

    async def upload_customized_audio(self, client: Client, sample: AudioChunk | None) -> None:
        """A voice for the client's session to imitate; None: the default voice."""
        session = (await self.sessions.open(client)).session
        await session.feed(ev.UpdateOptions({"response": {"voice_sample": sample}}))

    async def update_customized_options(self, client: Client, chosen: CustomOptions) -> None:
        """Change the options of the client's session."""
        session = (await self.sessions.open(client)).session
        await session.feed(ev.UpdateOptions(option_changes(chosen, session.options)))

    async def sys_prompt_init(self, client: Client) -> None:
        """Start the client's conversation again, with the instructions in its options."""
        session = (await self.sessions.open(client)).session
        await session.feed(ev.Reset())


def _responds_to(event: ev.Output, item: Item) -> bool:
    return isinstance(event, ev.ResponseStarted) and event.user_item is not None and event.user_item.id == item.id
