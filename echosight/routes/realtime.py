"""/v1/realtime: the OpenAI Realtime protocol over WebSocket."""

from __future__ import annotations

import time

from fastapi import APIRouter, WebSocket
from fastapi.requests import HTTPConnection

from echosight.conversation import new_id
from echosight.errors import EchoSightError, InputError
from echosight.events import ErrorRaised
from echosight.options import SessionOptions
from echosight.routes.auth import check_origin, client_kind, hash_token, token_of
from echosight.routes.client_secrets import ClientSecret, client_secrets_of
from echosight.routes.dependencies import manager_of, settings_of
from echosight.routes.handshake import refusals, socket_route
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.server.sessions import Client, Resumption, SessionEntry
from echosight.server.transport import serve
from echosight.wire.realtime import RealtimeWire, SessionTemplate, error_message

KEY_PROTOCOL = "openai-insecure-api-key."
BETA_PROTOCOL = "openai-beta.realtime-v1"
SESSION_S = 3_600
"""The `expires_at` of sessions. The field must hold a time, but no session ends then."""

CLEAN_CLOSE = (1000, 1005)
"""Close codes of clients that do not come back."""

sockets = APIRouter(route_class=OpenAIErrorRoute)


@socket_route(sockets, "/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    """One conversation. ``?session=…&last_event=…`` goes on with one whose socket was lost."""
    offered: list[str] = socket.scope["subprotocols"]
    await socket.accept("realtime" if "realtime" in offered else offered[0] if offered else None)
    async with refusals(socket, _error_message):
        token = _token(socket)
        secret = client_secrets_of(socket).find(token)
        if secret is None:
            require_api_key(socket, token)
            check_origin(socket)
        token_hash = hash_token(token)
        if not await _resume(socket, token_hash):
            wire = make_wire(socket, secret, settings_of(socket).session_options(), beta=BETA_PROTOCOL in offered)
            await _open(socket, wire, token_hash)


async def _resume(socket: WebSocket, token_hash: str) -> bool:
    """Go on with the session that the query names. False where it is gone, or no longer knows the last event."""
    query = socket.query_params
    async with manager_of(socket).sessions.resume(query.get("session"), token_hash) as entry:
        if entry is None or entry.resumption is None:
            return False
        missed = entry.resumption.wire.replay.after(query.get("last_event") or "")
        if missed is None:
            return False
        await _serve_connection(socket, entry.resumption.wire, entry, missed)
    return True


async def _open(socket: WebSocket, wire: RealtimeWire, token_hash: str) -> None:
    client = Client(f"realtime/{new_id('key')}", protocol="realtime", kind=client_kind(socket))
    async with manager_of(socket).sessions.connect(client, wire.opening_options(), keep_responding=True) as entry:
        wire.conversation = entry.session.conversation
        entry.resumption = Resumption(wire, token_hash)
        await _serve_connection(socket, wire, entry, [])


async def _serve_connection(socket: WebSocket, wire: RealtimeWire, entry: SessionEntry, missed: list[str]) -> None:
    """Serve a socket until it ends. A session outlives a socket that was lost, and none that the client closed."""
    code = await serve(socket, wire, entry, replay=missed)
    if code in CLEAN_CLOSE:
        await manager_of(socket).sessions.end(entry.client.key, "client_closed")


def require_api_key(connection: HTTPConnection, token: str | None) -> None:
    """Raises `InputError` 401, in OpenAI's words."""
    if not settings_of(connection).accepts_token(token):
        raise InputError("Incorrect API key provided.", code="invalid_api_key", status=401)


def make_wire(
    connection: HTTPConnection,
    secret: ClientSecret | None,
    options: SessionOptions,
    *,
    beta: bool,
    media_sample_rate: int | None = None,
) -> RealtimeWire:
    """The wire of a connection, with the choices of its ephemeral key and its query. Raises `WireError`."""
    manager, settings, query = manager_of(connection), settings_of(connection), connection.query_params
    template = SessionTemplate(
        model=query.get("model") or manager.engine.name,
        voices=manager.engine.voices,
        expires_at=int(time.time()) + SESSION_S,
        max_pixels=settings.max_image_pixels,
        bridge_turn=settings.bridge_turn_detection(),
        bridge_instructions=settings.default_system_prompt,
        media_sample_rate=media_sample_rate,
        transcription_only=query.get("intent") == "transcription" or (secret is not None and secret.transcribes),
    )
    wire = RealtimeWire(template, options, beta=beta or wants_beta(connection))
    if secret is not None:
        wire.configure(secret.session, flat=secret.flat)
    return wire


def wants_beta(connection: HTTPConnection) -> bool:
    return "realtime=v1" in connection.headers.get("openai-beta", "")


def _token(socket: WebSocket) -> str | None:
    """The API key by header, query or (the only way for browsers) by subprotocol."""
    offered: list[str] = socket.scope["subprotocols"]
    by_protocol = (name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL))
    return token_of(socket) or next(by_protocol, None)


def _error_message(error: EchoSightError) -> str:
    param = error.param if isinstance(error, InputError) else None
    return error_message(ErrorRaised(error.code, error.message, param))
