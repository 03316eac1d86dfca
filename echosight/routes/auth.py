"""Who calls: tokens, uids, and the limit on what a body may weigh."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.requests import HTTPConnection

from echosight.errors import InputError
from echosight.server.manager import StreamManager
from echosight.settings import Settings

log = logging.getLogger(__name__)

MAX_UID_CHARS = 256
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Client:
    """One user of the server. `key` tells sessions apart: a uid under one token is nobody under another."""

    uid: str
    key: str


def settings_of(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.app.state.settings
    return settings


def manager_of(connection: HTTPConnection) -> StreamManager:
    manager: StreamManager = connection.app.state.manager
    return manager


def token_of(connection: HTTPConnection) -> str | None:
    """The caller's token: ``Authorization: Bearer``, ``api-key``, or the query's ``token``."""
    scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return connection.headers.get("api-key") or connection.query_params.get("token")


def admit(connection: HTTPConnection) -> None:
    """A dependency of every guarded route. Raises `InputError` 401."""
    if not settings_of(connection).admits(token_of(connection)):
        raise InputError("Missing or wrong token", code="invalid_api_key", status=401)


def refuse_foreign_page(socket: HTTPConnection) -> None:
    """Any page on the web may open a socket to this machine; without tokens, only its origin tells it from ours.

    Raises `InputError` 403 for a page that is neither the server's own, nor one of this machine, nor in `cors_origins`.
    Callers that are no pages name no origin.
    """
    origin, settings = socket.headers.get("origin"), settings_of(socket)
    if origin is None or settings.api_tokens or {origin, "*"} & set(settings.cors_origins):
        return
    with contextlib.suppress(ValueError):
        page = urlsplit(origin)
        ours = (socket.headers.get("host"), socket.headers.get("x-forwarded-host"))
        if page.hostname in LOOPBACK or (page.netloc and page.netloc in ours):
            return
    log.warning("A page of %.100r may not call here; --cors-origins lets its origin in", origin)
    raise InputError("Pages of other origins may not call; see --cors-origins", code="foreign_origin", status=403)


def caller(connection: HTTPConnection) -> Client:
    """Who calls, by the header ``uid``; sockets may use the query instead. Raises `InputError` 400 or 401."""
    admit(connection)
    uid = connection.headers.get("uid")
    if uid is None and connection.scope["type"] == "websocket":
        uid = connection.query_params.get("uid")
    if not uid:
        raise InputError("Missing uid in headers", code="missing_uid")
    if len(uid) > MAX_UID_CHARS:
        raise InputError(f"uid is longer than {MAX_UID_CHARS} characters", code="invalid_uid")
    owner = hashlib.sha256((token_of(connection) or "").encode()).hexdigest()[:16] if _guarded(connection) else ""
    return Client(uid, f"{owner}/{uid}")


def _guarded(connection: HTTPConnection) -> bool:
    return bool(settings_of(connection).api_tokens)


async def body_of(request: Request) -> bytes:
    """The request's body. Raises `InputError` 413 as soon as it is larger than allowed."""
    limit = settings_of(request).max_body_bytes
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise InputError(f"The body is larger than {limit} bytes", code="too_large", status=413)
    return bytes(body)
