"""Small devices: the Hotpin protocol at /ws with /voices, and the xiaozhi firmware at /xiaozhi/."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request, WebSocket

from echosight import events as ev
from echosight.audio.opus import require_opus
from echosight.conversation import new_id
from echosight.errors import EchoSightError
from echosight.options import SessionChanges, SessionOptions
from echosight.routes.auth import MAX_UID_CHARS, check_origin, client_kind, owner_of, require_token, token_of
from echosight.routes.dependencies import ManagerDep, SettingsDep, manager_of, settings_of
from echosight.routes.handshake import refusals, socket_route
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client
from echosight.server.transport import receive, serve, take_over
from echosight.settings import WORDS_PER_MINUTE, Settings
from echosight.wire import Wire
from echosight.wire.fields import write_json
from echosight.wire.hotpin import HotpinWire, error_record, read_handshake
from echosight.wire.xiaozhi import OUTPUT_RATE, XiaozhiWire, read_hello

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
        defaults = device_options(manager_of(socket), settings_of(socket), handshake.language)
        await _serve_device(socket, client, HotpinWire(handshake), defaults, handshake.changes(defaults))


@socket_route(sockets, "/xiaozhi/v1/", "/xiaozhi/v1")
async def xiaozhi(socket: WebSocket) -> None:
    """One device of the xiaozhi firmware. The same ``Device-Id`` goes on with its conversation."""
    async with refusals(socket):
        require_token(socket)
        check_origin(socket)
        require_opus()
        device_id = socket.headers.get("device-id", "")[:MAX_UID_CHARS]
        version = socket.headers.get("protocol-version", "")
        await socket.accept()
        if (first := await receive(socket)) is None:
            return
        hello = read_hello(first, int(version) if version in ("1", "2", "3") else 1)
        key = f"xiaozhi/{owner_of(socket)}/{device_id}" if device_id else f"xiaozhi/{new_id('key')}"
        client = Client(key, device_id, "xiaozhi", client_kind(socket))
        defaults = device_options(manager_of(socket), settings_of(socket))
        wire = XiaozhiWire(hello, new_id("sess"))
        await _serve_device(socket, client, wire, defaults, {"output_sample_rate": OUTPUT_RATE})


@router.get("/xiaozhi/ota/")
@router.post("/xiaozhi/ota/")
async def bootstrap(request: Request) -> dict[str, Any]:
    """Where a device of the xiaozhi firmware connects to: this server, by the address that the device used."""
    scheme = "wss" if request.url.scheme == "https" else "ws"
    offset_min = (time.localtime().tm_gmtoff or 0) // 60
    return {
        "server_time": {"timestamp": int(time.time() * 1000), "timezone_offset": offset_min},
        "firmware": {"version": "0.0.0", "url": ""},
        "websocket": {
            "url": f"{scheme}://{request.url.netloc}/xiaozhi/v1/",
            "token": token_of(request) or "",
            "version": 1,
        },
    }


async def _serve_device(
    socket: WebSocket, client: Client, wire: Wire, defaults: SessionOptions, changes: SessionChanges
) -> None:
    """Serve an accepted socket. `defaults` are the options of a new session, `changes` those of the handshake."""
    # A device sleeps between two turns, so its session is kept longer than that of a lost socket.
    linger_s = settings_of(socket).idle_timeout_s
    async with take_over(manager_of(socket), client, defaults, linger_s) as entry:
        await entry.session.feed(ev.UpdateOptions(changes))
        await serve(socket, wire, entry)


def device_options(manager: StreamManager, settings: Settings, language: str | None = None) -> SessionOptions:
    """Options of a new session of a device: short responses that can be spoken, in the dialect for English."""
    options = manager.live_options()
    response = replace(
        options.response,
        temperature=settings.device_temperature,
        max_output_tokens=settings.device_max_tokens,
        speed=settings.device_words_per_minute / WORDS_PER_MINUTE,
    )
    return replace(options, instructions=settings.device_instructions(language), response=response)


def _error_message(error: EchoSightError) -> str:
    return write_json(error_record(error.code, error.message))
