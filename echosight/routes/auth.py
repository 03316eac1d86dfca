"""Who may call: tokens, web origins, and the identity of a client."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from fastapi.requests import HTTPConnection

from echosight.errors import InputError
from echosight.routes.dependencies import settings_of
from echosight.server.sessions import Client

log = logging.getLogger(__name__)

MAX_UID_CHARS = 256
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def token_of(connection: HTTPConnection) -> str | None:
    """The client's token: ``Authorization: Bearer``, ``api-key``, or the query's ``token``."""
    scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return connection.headers.get("api-key") or connection.query_params.get("token")


def hash_token(token: str | None) -> str:
    """What the server keeps of a token to recognise its owner."""
    return hashlib.sha256((token or "").encode()).hexdigest()


def require_token(connection: HTTPConnection) -> None:
    """A dependency of every protected route. Raises `InputError` 401."""
    if not settings_of(connection).accepts_token(token_of(connection)):
        raise InputError("Missing or wrong token", code="invalid_api_key", status=401)


def check_origin(socket: HTTPConnection) -> None:
    """Guards against cross-site WebSocket hijacking: without tokens, the Origin header is the only check.

    Raises `InputError` 403 for a page that is neither the server's own, nor one of this machine, nor in `cors_origins`.
    Clients other than browsers send no Origin.
    """
    origin, settings = socket.headers.get("origin"), settings_of(socket)
    if origin is None or settings.api_tokens or {origin, "*"} & set(settings.cors_origins):
        return
    with contextlib.suppress(ValueError):
        page = urlsplit(origin)
        own_hosts = (socket.headers.get("host"), socket.headers.get("x-forwarded-host"))
        if page.hostname in LOOPBACK or (page.netloc and page.netloc in own_hosts):
            return
    log.warning("Refused a socket to a page of origin %.100r; --cors-origins can allow it", origin)
    raise InputError("Origin not allowed; add it to --cors-origins", code="foreign_origin", status=403)


def client_of(connection: HTTPConnection) -> Client:
    """The client by its header ``uid``; sockets may use the query instead. Raises `InputError` 400 or 401."""
    require_token(connection)
    uid = connection.headers.get("uid")
    if uid is None and connection.scope["type"] == "websocket":
        uid = connection.query_params.get("uid")
    if not uid:
        raise InputError("Missing uid in headers", code="missing_uid")
    return Client(f"{owner_of(connection)}/{check_uid(uid)}", uid, "echosight", client_kind(connection))


def check_uid(uid: str) -> str:
    """Raises `InputError` 400 where it is too long."""
    if len(uid) > MAX_UID_CHARS:
        raise InputError(f"uid is longer than {MAX_UID_CHARS} characters", code="invalid_uid")
    return uid


def owner_of(connection: HTTPConnection) -> str:
    """What tells the clients of one token from those of another; empty where the server has no tokens."""
    return hash_token(token_of(connection))[:16] if auth_enabled(connection) else ""


def client_kind(connection: HTTPConnection) -> str:
    """The kind of program that connects, for the log: ``browser``, or the product that its User-Agent names."""
    product = connection.headers.get("user-agent", "").partition("/")[0]
    if product == "Mozilla":
        return "browser"
    return product if re.fullmatch(r"[\w.-]{1,40}", product, re.ASCII) else "unknown"


def auth_enabled(connection: HTTPConnection) -> bool:
    return bool(settings_of(connection).api_tokens)


ClientDep = Annotated[Client, Depends(client_of)]
