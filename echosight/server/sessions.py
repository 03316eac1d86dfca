"""SessionRegistry: the sessions of all clients, from their opening to their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from echosight.errors import EchoSightError, EngineFull, InputError
from echosight.options import SessionOptions
from echosight.server.engine_host import EngineHost
from echosight.session.session import Session
from echosight.settings import Settings
from echosight.wire.realtime import RealtimeWire

log = logging.getLogger(__name__)

TAKEOVER_WAIT_S = 1.0
"""How long a reconnecting client waits for its previous connection to close."""

MAX_TAKEOVER_S = 10.0
"""How long a connection that takes a session over waits for the previous one, whose response has to stop first."""

EVICT_AFTER_S = 10
"""A session without a connection may be closed to make room for another one after this many seconds."""

CloseReason = Literal[
    "client_closed", "client_gone", "client_not_reading", "expired", "evicted", "replaced", "server_stopping"
]


@dataclass(frozen=True, slots=True)
class Client:
    """One user of the server. `key` identifies its session: the same uid under another token has another key.

    `protocol` and `kind` (``browser``, ``python-httpx``) are for the log.
    """

    key: str
    uid: str = ""
    protocol: str = "echosight"
    kind: str = "unknown"


class SupersededError(EchoSightError):
    """Another connection has taken the session over."""

    code = "superseded"


@dataclass(eq=False, slots=True)
class Reader:
    """The one connection that reads a session's events. `is_socket`: uvicorn itself closes it when the server stops."""

    is_socket: bool
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when another connection takes the session over: this one has to leave."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has left."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a later connection needs to go on with a session: the wire, and a hash of the token that opened it."""

    wire: RealtimeWire
    token_hash: str


@dataclass(eq=False, slots=True)
class SessionEntry:
    """A session in the registry. Without a reader it expires `ttl_s` seconds after `last_active` (clock time)."""

    client: Client
    session: Session
    close: Callable[[], Awaitable[None]]
    last_active: float
    ttl_s: float
    reader: Reader | None = None
    resumption: Resumption | None = None
    call: asyncio.Task[None] | None = None
    """Serves a connection that outlives its HTTP request: a WebRTC call."""


SessionFactory = Callable[[SessionOptions | None], tuple[Session, Callable[[], Awaitable[None]]]]
"""Makes a session and the function that closes it; None: with the server's default options."""


class SessionRegistry:
    """One session per client key, and at most one reader per session.

    A session ends when its client has been inactive for `Settings.idle_timeout_s`, or when it has lost its socket and
    not come back within `Settings.linger_s`.
    """

    def __init__(
        self,
        create: SessionFactory,
        engine: EngineHost,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._create = create
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._entries: dict[str, SessionEntry] = {}
        self.stopping = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def capacity(self) -> int:
        """How many sessions there can be at once."""
        return min(self._engine.capacity, self._settings.max_sessions or self._engine.capacity)

    def get(self, key: str) -> SessionEntry | None:
        return self._entries.get(key)

    # --- opening and closing --------------------------------------------------------------------

    async def open(self, client: Client, options: SessionOptions | None = None) -> SessionEntry:
        """The client's session; a new one where it has none. Raises `EngineFull`."""
        entry = self._entries.get(client.key)
        if entry is not None and entry.session.closed:
            await self._end(entry, "replaced")
        if client.key not in self._entries:
            await self._make_room()
        # Another request of the client may have opened it while this one waited.
        entry = self._entries.get(client.key) or self._add(client, options)
        entry.last_active, entry.ttl_s = self._clock(), self._settings.idle_timeout_s
        return entry

    def _add(self, client: Client, options: SessionOptions | None) -> SessionEntry:
        session, close = self._create(options)
        entry = SessionEntry(client, session, close, self._clock(), self._settings.idle_timeout_s)
        self._entries[client.key] = entry
        log.info("session opened session=%s protocol=%s client=%s", session.id, client.protocol, client.kind)
        return entry

    async def _make_room(self) -> None:
        """Evict sessions without a connection, the longest inactive first. Raises `EngineFull`."""
        self._engine.require_ready()
        while len(self) >= self.capacity:
            now = self._clock()
            unread = [entry for entry in self._entries.values() if entry.reader is None]
            oldest = min(unread, key=lambda entry: entry.last_active, default=None)
            inactive_s = now - oldest.last_active if oldest is not None else 0
            if oldest is None or inactive_s < EVICT_AFTER_S:
                raise EngineFull(retry_after=max(1, round(EVICT_AFTER_S - inactive_s)))
            await self._end(oldest, "evicted")

    async def end(self, key: str, reason: CloseReason) -> None:
        """Close the client's session, if there is one."""
        if (entry := self._entries.get(key)) is not None:
            await self._end(entry, reason)

    async def _end(self, entry: SessionEntry, reason: CloseReason) -> None:
        """Closes this entry only, not one that has replaced it."""
        if self._entries.get(entry.client.key) is entry:
            del self._entries[entry.client.key]
            await entry.close()
            log.info("session closed session=%s reason=%s", entry.session.id, reason)

    async def expire(self) -> None:
        """Close inactive sessions, once a second, until cancelled."""
        while True:
            await asyncio.sleep(1)
            await self.close_expired()

    async def close_expired(self) -> None:
        now = self._clock()
        for entry in list(self._entries.values()):
            if entry.reader is None and entry.last_active + entry.ttl_s <= now:
                await self._end(entry, "expired")

    def begin_shutdown(self) -> None:
        """Close the queues of SSE readers; uvicorn closes WebSockets itself."""
        self.stopping = True
        for entry in self._entries.values():
            if entry.reader is not None and not entry.reader.is_socket:
                entry.session.outbox.close()

    async def close(self) -> None:
        """End all sessions and the calls that serve them."""
        entries = list(self._entries.values())
        for entry in entries:
            await self._end(entry, "server_stopping")
        await asyncio.gather(*(entry.call for entry in entries if entry.call is not None), return_exceptions=True)

    # --- readers --------------------------------------------------------------------------------

    async def wait_for_reader(
        self, client: Client, options: SessionOptions | None = None, *, take_over: bool = False
    ) -> SessionEntry:
        """The client's session once it has no reader. With `take_over`, sockets that read it have to leave.

        Raises `EngineFull`, or `InputError` (409) after a while.
        """
        wait_s = MAX_TAKEOVER_S if take_over else TAKEOVER_WAIT_S
        deadline = asyncio.get_running_loop().time() + wait_s
        entry = await self.open(client, options)
        while (reader := entry.reader) is not None:
            if take_over:
                reader.superseded.set()
            try:
                async with asyncio.timeout_at(deadline):
                    await reader.gone.wait()
            except TimeoutError:
                raise InputError(
                    "Another connection already reads the responses of this uid", code="already_reading", status=409
                ) from None
            entry = await self.open(client, options)  # the session may have ended with its reader
        return entry

    @contextlib.asynccontextmanager
    async def read(self, client: Client) -> AsyncIterator[SessionEntry]:
        """Read the client's session without a socket. Raises as `wait_for_reader`."""
        entry = await self.wait_for_reader(client)
        async with self._reading(entry, Reader(is_socket=False)):
            yield entry

    @contextlib.asynccontextmanager
    async def connect(
        self,
        client: Client,
        options: SessionOptions | None = None,
        *,
        keep_responding: bool = False,
        take_over: bool = False,
        linger_s: float | None = None,
    ) -> AsyncIterator[SessionEntry]:
        """Read the client's session, a new one of these `options` where it has none, for as long as a socket lasts.

        When the socket is lost, its response stops unless `keep_responding`, and the session is kept `linger_s` seconds
        (None: those of the settings) for the client to come back. With `take_over`, a socket that still reads the
        session gets `SupersededError`. Raises as `wait_for_reader`.
        """
        entry = await self.wait_for_reader(client, options, take_over=take_over)
        async with self._connected(entry, keep_responding, linger_s):
            yield entry

    @contextlib.asynccontextmanager
    async def resume(self, session_id: str | None, token_hash: str) -> AsyncIterator[SessionEntry | None]:
        """Take over a session that the same token opened; None where there is none.

        Its previous socket, if it still has one, gets `SupersededError`. A response goes on without a socket.
        """
        entry = self._resumable(session_id, token_hash)
        while entry is not None and (reader := entry.reader) is not None:
            reader.superseded.set()
            await reader.gone.wait()
            # The session may have ended meanwhile, and another connection may have come first.
            entry = self._resumable(session_id, token_hash)
        if entry is None:
            yield None
            return
        async with self._connected(entry, keep_responding=True):
            yield entry

    def _resumable(self, session_id: str | None, token_hash: str) -> SessionEntry | None:
        for entry in self._entries.values():
            if entry.session.id == session_id and not entry.session.closed:
                return entry if entry.resumption and entry.resumption.token_hash == token_hash else None
        return None

    @contextlib.asynccontextmanager
    async def _connected(
        self, entry: SessionEntry, keep_responding: bool, linger_s: float | None = None
    ) -> AsyncIterator[None]:
        async with self._reading(entry, Reader(is_socket=True)):
            try:
                yield
            finally:
                entry.ttl_s = self._settings.linger_s if linger_s is None else linger_s
                if not keep_responding:
                    await entry.session.stop("client_gone")
                if entry.ttl_s == 0:
                    await self._end(entry, "client_gone")

    @contextlib.asynccontextmanager
    async def _reading(self, entry: SessionEntry, reader: Reader) -> AsyncIterator[None]:
        entry.reader = reader
        try:
            yield
        finally:
            entry.reader = None
            entry.last_active = self._clock()
            reader.gone.set()
            if entry.session.outbox.overflowed:
                await self._end(entry, "client_not_reading")
