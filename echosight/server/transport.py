"""The only pumps between FastAPI's sockets and a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, MutableMapping
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

from echosight.errors import InputError
from echosight.events import ErrorRaised
from echosight.server.manager import StreamManager
from echosight.session.session import Session
from echosight.wire import Message, Wire

Packet = MutableMapping[str, Any]

UNREAD = 1008
"""Close code for a client that does not read what it is sent."""

KEEP_ALIVE_S = 15

LOST = 1006
"""Close code of a socket that was not closed by anybody."""


async def serve(socket: WebSocket, wire: Wire, session: Session, *first: Message) -> int | None:
    """Carry a session over an accepted socket until one side ends it. `first`: messages that were already received.

    Returns the client's close code; None where the server closed it.
    """
    tasks = [asyncio.create_task(_up(socket, wire, session, first)), asyncio.create_task(_down(socket, wire, session))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next((code for task in done if (code := task.result()) is not None), None)
    except WebSocketDisconnect as gone:
        return gone.code
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _up(socket: WebSocket, wire: Wire, session: Session, first: tuple[Message, ...]) -> int:
    manager: StreamManager = socket.app.state.manager
    for message in first:
        await _take(manager, wire, session, message)
    while (packet := await socket.receive())["type"] != "websocket.disconnect":
        await _take(manager, wire, session, _message(packet))
    return _close_code(packet)


def _close_code(packet: Packet) -> int:
    """uvicorn says 1005 of a connection that broke as of a close frame without a code, but a reason of the latter only.

    Whoever was lost may come back; whoever closed does not.
    """
    return int(packet.get("code") or LOST) if "reason" in packet else LOST


async def _take(manager: StreamManager, wire: Wire, session: Session, message: Message) -> None:
    try:
        for event in await manager.read(len(message), lambda: list(wire.receive(message))):
            await session.feed(event)
    except InputError as error:
        session.report_error(ErrorRaised(error.code, error.message, error.param, wire.client_event_id))


async def _down(socket: WebSocket, wire: Wire, session: Session) -> None:
    async for event in session.events():
        for message in wire.send(event):
            await send(socket, message)
    await socket.close(UNREAD if session.outbox.overflowed else 1001)


async def receive(socket: WebSocket) -> Message | None:
    """The next message; None once the client is gone."""
    packet = await socket.receive()
    return None if packet["type"] == "websocket.disconnect" else _message(packet)


def _message(packet: Packet) -> Message:
    text: str | None = packet.get("text")
    data: bytes = packet.get("bytes") or b""
    return text if text is not None else data


async def send(socket: WebSocket, message: Message) -> None:
    if isinstance(message, str):
        await socket.send_text(message)
    else:
        await socket.send_bytes(message)


# A server that ends tells its streams so; only what has not ended by then is cut, by `cut_streams`.
AppStatus.enable_automatic_graceful_drain = False


def cut_streams() -> None:
    """The server ends: cancel every stream of server-sent events that goes on."""
    AppStatus.should_exit = True


def sse(records: AsyncGenerator[dict[str, Any]]) -> EventSourceResponse:
    """Records as server-sent events, with a comment as keep-alive. A client that goes away closes `records`."""
    return EventSourceResponse(_messages(records), ping=KEEP_ALIVE_S)


async def _messages(records: AsyncGenerator[dict[str, Any]]) -> AsyncIterable[dict[str, str]]:
    async with aclosing(records):
        async for record in records:
            yield {"event": "message", "data": orjson.dumps(record).decode()}
