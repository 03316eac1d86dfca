"""Who calls: tokens, uids, and the limit on what a body may weigh."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fastapi import Request
from fastapi.requests import HTTPConnection

from echosight.errors import InputError
from echosight.manager import StreamManager
from echosight.settings import Settings

MAX_UID_CHARS = 256


@dataclass(frozen=True, slots=True)
class Caller:
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


def caller(connection: HTTPConnection) -> Caller:
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
    return Caller(uid, f"{owner}/{uid}")


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
