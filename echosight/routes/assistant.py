"""The voice assistant at /ws/audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, WebSocket
from fastapi.requests import HTTPConnection

from echosight.conversation import new_id
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import SessionOptions
from echosight.routes.auth import check_origin, client_kind, owner_of, require_token
from echosight.routes.dependencies import manager_of, settings_of
from echosight.routes.handshake import refusals, socket_route
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client
from echosight.server.transport import receive, serve, take_over
from echosight.settings import Settings
from echosight.wire import Message
from echosight.wire.assistant import AssistantWire, error_message, session_id_of

sockets = APIRouter()


@socket_route(sockets, "/ws/audio")
async def assistant(socket: WebSocket) -> None:
    """One conversation; the first message is ``config`` or binary audio."""
    async with refusals(socket, error_message):
        require_token(socket)
        check_origin(socket)
        await socket.accept()
        if (first := await receive(socket)) is not None:
            await serve_assistant(socket, assistant_client(socket, first), [first])


def assistant_client(socket: HTTPConnection, first: Message) -> Client:
    """The client by the ``session_id`` of its first message; one without is new. Raises `WireError`."""
    session_id = session_id_of(first)
    key = f"assistant/{owner_of(socket)}/{session_id}" if session_id else f"assistant/{new_id('key')}"
    return Client(key, session_id or "", "assistant", client_kind(socket))


async def serve_assistant(socket: WebSocket, client: Client, first: Sequence[Message]) -> None:
    """Serve an accepted socket whose messages `first` were received before. Raises `EngineFull`, `WireError`.

    A `client` whose earlier connection is still open takes its session over.
    """
    manager = manager_of(socket)
    async with take_over(manager, client, assistant_options(manager, settings_of(socket))) as entry:
        await serve(socket, AssistantWire(), entry, first=first)


def assistant_options(manager: StreamManager, settings: Settings) -> SessionOptions:
    """Options of a new session: speech at the rate of the microphone until ``config`` says otherwise."""
    options = manager.live_options()
    detection = options.turn_detection
    assert detection is not None
    return replace(
        options,
        turn_detection=replace(detection, threshold=settings.speech_threshold),
        output_sample_rate=INPUT_SAMPLE_RATE,
    )
