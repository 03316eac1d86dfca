"""How every socket begins: its route, and its refusals with one close code for each reason."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from echosight.errors import EchoSightError, EngineFull, InputError
from echosight.routes.errors import echosight_error_response
from echosight.server.sessions import SupersededError

CLOSE_REFUSED = 1008
CLOSE_TRY_LATER = 1013
CLOSE_INVALID_TOKEN = 3000
CLOSE_SUPERSEDED = 4000

MAX_REASON_BYTES = 123
"""Longest reason that a close frame holds."""

Endpoint = Callable[[WebSocket], Awaitable[None]]

unknown_sockets = APIRouter()
"""Answers 404 to sockets of any other path; to be included last. Starlette would answer 403."""


def socket_route(router: APIRouter, *paths: str) -> Callable[[Endpoint], Endpoint]:
    """Serve sockets at `paths`; a plain GET of them gets 426."""

    def register(endpoint: Endpoint) -> Endpoint:
        for path in paths:
            router.add_api_websocket_route(path, endpoint)
            router.add_api_route(path, upgrade_required, methods=["GET"], include_in_schema=False)
        return endpoint

    return register


async def upgrade_required() -> None:
    """Raises `InputError` 426."""
    raise InputError(
        "This path is a WebSocket: connect to it with ws:// or wss://", code="upgrade_required", status=426
    )


@unknown_sockets.websocket("/{path:path}")
async def not_found(socket: WebSocket) -> None:
    async with refusals(socket):
        raise InputError("There is no WebSocket at this path", code="not_found", status=404)


@contextlib.asynccontextmanager
async def refusals(
    socket: WebSocket, error_message: Callable[[EchoSightError], str] | None = None
) -> AsyncIterator[None]:
    """Refuse the socket with the error that is raised inside.

    Before the socket is accepted, the client gets an HTTP response. After it, it gets the dialect's `error_message`,
    where it has one, and a close frame. (Browsers cannot read why an upgrade failed, so Realtime accepts first.)
    """
    try:
        yield
    except WebSocketDisconnect:
        pass
    except SupersededError as error:
        await _close(socket, error)
    except (EngineFull, InputError) as error:
        if socket.application_state is WebSocketState.CONNECTING:
            await socket.send_denial_response(echosight_error_response(error))
        else:
            await _close(socket, error, error_message)


async def _close(
    socket: WebSocket, error: EchoSightError, error_message: Callable[[EchoSightError], str] | None = None
) -> None:
    reason = error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client may be gone
        if error_message is not None:
            await socket.send_text(error_message(error))
        await socket.close(close_code(error), reason)


def close_code(error: EchoSightError) -> int:
    match error:
        case SupersededError():
            return CLOSE_SUPERSEDED
        case EngineFull():
            return CLOSE_TRY_LATER
        case InputError(status=401):
            return CLOSE_INVALID_TOKEN
        case _:
            return CLOSE_REFUSED
