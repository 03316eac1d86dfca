"""Small devices: the Hotpin protocol at /ws, and /voices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, WebSocket

from echosight import events as ev
from echosight.errors import EchoSightError
from echosight.options import SessionOptions
from echosight.routes.auth import check_origin, client_kind, owner_of, require_token
from echosight.routes.dependencies import ManagerDep, SettingsDep, manager_of, settings_of
from echosight.routes.handshake import refusals, socket_route
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client
from echosight.server.transport import receive, serve
from echosight.settings import WORDS_PER_MINUTE, Settings
from echosight.wire.fields import write_json
from echosight.wire.hotpin import HotpinWire, error_record, read_handshake

router = APIRouter(tags=["devices"], dependencies=[Depends(require_token)])
sockets = APIRouter()


@router.get("/voices")
async def voices(manager: ManagerDep, settings: SettingsDep) -> dict[str, Any]:
    """The voices that a handshake can name."""
    names = manager.engine.voices
    default = settings.voice or (names[0] if names else None)
    return {"voices": [{"id": name, "name": name, "default": name == default} for name in names]}


@socket_route(sockets, "/ws")
async def hotpin(socket: WebSocket) -> None:
    """One device. The same ``session_id`` of the same token goes on with its conversation, also while its previous
    connection is still open: a device that was reset does not close it."""
    async with refusals(socket, _error_message):
        require_token(socket)
        check_origin(socket)
        await socket.accept()
        if (first := await receive(socket)) is None:
            return
        handshake = read_handshake(first)
        client = Client(
            f"hotpin/{owner_of(socket)}/{handshake.session_id}", handshake.session_id, "hotpin", client_kind(socket)
        )
        manager, settings = manager_of(socket), settings_of(socket)
        manager.sessions.take_over(client.key)
        async with manager.sessions.connect(client, device_options(manager, settings)) as entry:
            session = entry.session
            session.outbox.skip_to_latest_response()
            await session.feed(ev.UpdateOptions(handshake.changes()))
            await serve(socket, HotpinWire(handshake), entry)
        entry.ttl_s = settings.idle_timeout_s  # a device sleeps between two turns


def device_options(manager: StreamManager, settings: Settings) -> SessionOptions:
    """Options of a new session of a device: short responses that can be spoken."""
    options = manager.live_options()
    response = replace(
        options.response,
        temperature=settings.device_temperature,
        max_output_tokens=settings.device_max_tokens,
        speed=settings.device_words_per_minute / WORDS_PER_MINUTE,
    )
    return replace(options, instructions=settings.device_instructions(), response=response)


def _error_message(error: EchoSightError) -> str:
    return write_json(error_record(error.code, error.message))
