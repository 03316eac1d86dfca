"""/v1/realtime: the OpenAI Realtime protocol over WebSocket, and the ephemeral keys that open it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.requests import HTTPConnection

from echosight.conversation import new_id
from echosight.errors import EchoSightError, EngineFull, InputError
from echosight.events import ErrorRaised
from echosight.options import SessionOptions
from echosight.routes.auth import manager_of, refuse_foreign_page, settings_of, token_of
from echosight.routes.client_secrets import ClientSecret, ClientSecretStore
from echosight.server.manager import StreamManager
from echosight.server.transport import serve
from echosight.session.session import Session
from echosight.wire.realtime import RealtimeWire, SessionTemplate, error_message

KEY_PROTOCOL = "openai-insecure-api-key."
BETA_PROTOCOL = "openai-beta.realtime-v1"
SESSION_S = 3_600
"""What `expires_at` says. Nothing ends then: the field must hold something."""

INVALID_KEY, TRY_LATER, TAKEN_OVER = 3000, 1013, 4000
MAX_REASON_BYTES = 123
GOODBYE = (1000, 1005)
"""Close codes of clients that do not come back."""

sockets = APIRouter()


@dataclass(slots=True)
class ResumableSession:
    """A session that a client may come back to, and the task that serves its present socket."""

    owner: str
    key: str
    session: Session
    wire: RealtimeWire
    serving: asyncio.Task[int | None] | None = None
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no socket is served."""


class RealtimeState:
    """What all Realtime connections of a server share: the keys it handed out and the sessions that may be resumed."""

    def __init__(self) -> None:
        self.secrets = ClientSecretStore()
        self.live: dict[str, ResumableSession] = {}
        self.calls: dict[str, Any] = {}
        """WebRTC calls by id."""

    def enter(self, live: ResumableSession) -> None:
        """Remember a session for those who come back, and forget those that are over."""
        for session_id in [i for i, known in self.live.items() if known.session.closed]:
            del self.live[session_id]
        self.live[live.session.id] = live

    async def resume(
        self, session_id: str | None, last_event: str | None, owner: str
    ) -> tuple[ResumableSession, list[str]] | None:
        """The session and what its client missed; None where it is gone. Its old socket, if it has one, is let go."""
        live = self.live.get(session_id or "")
        if live is None or live.owner != owner or live.session.closed:
            return None
        while not live.free.is_set():  # somebody else may have come back in the meantime
            if live.serving is not None:
                live.serving.cancel()
            await live.free.wait()
        missed = live.wire.replay.after(last_event or "")
        return None if missed is None or live.session.closed else (live, missed)


def desk_of(connection: HTTPConnection) -> RealtimeState:
    desk: RealtimeState = connection.app.state.realtime
    return desk


# --- the socket -------------------------------------------------------------------------------------


@sockets.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    """One conversation. ``?session=…&last_event=…`` goes on with one whose socket was lost."""
    offered: list[str] = socket.scope["subprotocols"]
    await socket.accept("realtime" if "realtime" in offered else offered[0] if offered else None)
    token = _token(socket)
    desk = desk_of(socket)
    secret = desk.secrets.find(token)
    if secret is None and not settings_of(socket).admits(token):
        await _turn_away(socket, InputError("Incorrect API key provided.", code="invalid_api_key"), INVALID_KEY)
        return
    owner = hashlib.sha256((token or "").encode()).hexdigest()
    query = socket.query_params
    try:
        if secret is None:
            refuse_foreign_page(socket)
        resumed = await desk.resume(query.get("session"), query.get("last_event"), owner)
        if resumed is not None:
            await _carry(socket, *resumed)
            return
        wire = wire_of(socket, secret, settings_of(socket).session_options(), beta=BETA_PROTOCOL in offered)
        key = f"realtime/{new_id('key')}"
        await _begin(socket, desk, wire, owner, key)
    except EngineFull as error:
        await _turn_away(socket, error, TRY_LATER)
    except InputError as error:
        await _turn_away(socket, error, 1008)


async def _begin(socket: WebSocket, desk: RealtimeState, wire: RealtimeWire, owner: str, key: str) -> None:
    manager = manager_of(socket)
    session = await manager.open(key, wire.opening_options())
    wire.conversation = session.conversation
    live = ResumableSession(owner, key, session, wire)
    desk.enter(live)
    await _carry(socket, live, [])


async def _carry(socket: WebSocket, live: ResumableSession, missed: list[str]) -> None:
    """Serve a socket until it ends. A session outlives a socket that was lost, and none that was closed."""
    manager: StreamManager = manager_of(socket)
    live.free.clear()
    try:
        async with manager.connect(live.key, waits=True):
            live.serving = serving = asyncio.create_task(_serve(socket, live, missed))
            try:
                await asyncio.wait([serving])
            finally:
                serving.cancel()
        if not serving.cancelled() and serving.result() in GOODBYE:
            await manager.end(live.key)
    finally:
        live.serving = None
        live.free.set()
    if serving.cancelled():
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.close(TAKEN_OVER, "resumed on another socket")


async def _serve(socket: WebSocket, live: ResumableSession, missed: list[str]) -> int | None:
    try:
        for message in missed:
            await socket.send_text(message)
    except WebSocketDisconnect as gone:
        return gone.code
    return await serve(socket, live.wire, live.session)


def wire_of(
    connection: HTTPConnection,
    secret: ClientSecret | None,
    options: SessionOptions,
    *,
    beta: bool,
    media_sample_rate: int | None = None,
) -> RealtimeWire:
    """The dialect of a connection, with what its key and its query choose beforehand. Raises `WireError`."""
    manager, settings, query = manager_of(connection), settings_of(connection), connection.query_params
    template = SessionTemplate(
        model=query.get("model") or manager.engine.name,
        voices=manager.engine.voices,
        expires_at=int(time.time()) + SESSION_S,
        max_pixels=settings.max_image_pixels,
        bridge_turn=settings.bridge_turn(),
        bridge_instructions=settings.default_system_prompt,
        media_sample_rate=media_sample_rate,
        transcription_only=query.get("intent") == "transcription" or (secret is not None and secret.transcribes),
    )
    wire = RealtimeWire(template, options, beta=beta or asks_for_beta(connection))
    if secret is not None:
        wire.configure(secret.session, flat=secret.flat)
    return wire


def asks_for_beta(connection: HTTPConnection) -> bool:
    return "realtime=v1" in connection.headers.get("openai-beta", "")


def _token(socket: WebSocket) -> str | None:
    """The key by header, query or, as browsers must, by subprotocol."""
    offered: list[str] = socket.scope["subprotocols"]
    by_protocol = (name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL))
    return token_of(socket) or next(by_protocol, None)


async def _turn_away(socket: WebSocket, error: EchoSightError, code: int) -> None:
    """Browsers cannot read why an upgrade failed, so it succeeds, and the reason follows."""
    param = error.param if isinstance(error, InputError) else None
    with contextlib.suppress(WebSocketDisconnect):
        await socket.send_text(error_message(ErrorRaised(error.code, error.message, param)))
        await socket.close(code, error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))
