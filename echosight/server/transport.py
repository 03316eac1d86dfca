"""The loops that carry a session over FastAPI's sockets, and responses as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, MutableMapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

from echosight.errors import InputError
from echosight.events import ClearInput, ErrorRaised
from echosight.options import SessionOptions
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client, SessionEntry, SupersededError
from echosight.session.session import Session
from echosight.wire import Message, Wire
from echosight.wire.fields import write_json

AsgiMessage = MutableMapping[str, Any]
T = TypeVar("T")

CLOSE_SLOW_CLIENT = 1008
"""Close code for a client that does not read what it is sent."""

CLOSE_GOING_AWAY = 1001
"""Close code where the session has ended."""

CLOSE_ABNORMAL = 1006
"""Close code of a socket that broke without a close frame."""

KEEP_ALIVE_S = 15


async def serve(
    socket: WebSocket, wire: Wire, entry: SessionEntry, *, first: Sequence[Message] = (), replay: Sequence[Message] = ()
) -> int | None:
    """Carry a session over an accepted socket until one side ends it.

    The wire's greeting is sent first, then `replay`, then the session's events. `first` are messages that were received
    before. Returns the client's close code; None where the server closed the socket. Raises `SupersededError` where
    another connection takes the session over; the socket is then still open.
    """
    assert entry.reader is not None
    superseded = asyncio.create_task(entry.reader.superseded.wait())
    loops = [
        asyncio.create_task(_receive_loop(socket, wire, entry.session, first)),
        asyncio.create_task(_send_loop(socket, wire, entry.session, [*wire.greet(), *replay])),
    ]
    try:
        done, _ = await asyncio.wait([superseded, *loops], return_when=asyncio.FIRST_COMPLETED)
        if superseded in done:
            raise SupersededError("resumed on another socket")
        return next((code for task in loops if task in done and (code := task.result()) is not None), None)
    except WebSocketDisconnect as gone:
        return gone.code
    finally:
        for task in (superseded, *loops):
            task.cancel()
        await asyncio.wait([superseded, *loops])


@asynccontextmanager
async def take_over(
    manager: StreamManager, client: Client, options: SessionOptions, linger_s: float | None = None
) -> AsyncIterator[SessionEntry]:
    """As `SessionRegistry.connect`, for clients that come back: another socket that reads the session has to leave.

    What the lost connection left of a turn is dropped, and so are the events that it did not read, except those of the
    latest response.
    """
    async with manager.sessions.connect(client, options, take_over=True, linger_s=linger_s) as entry:
        await entry.session.feed(ClearInput())
        entry.session.outbox.skip_to_latest_response()
        yield entry


async def _receive_loop(socket: WebSocket, wire: Wire, session: Session, first: Sequence[Message]) -> int:
    manager: StreamManager = socket.app.state.manager
    for message in first:
        await _handle(manager, wire, session, message)
    while (packet := await socket.receive())["type"] != "websocket.disconnect":
        await _handle(manager, wire, session, _message(packet))
    return _close_code(packet)


def _close_code(packet: AsgiMessage) -> int:
    """uvicorn reports 1005 both for a broken connection and for a close frame without a code; only the latter has a
    `reason`. A client whose connection broke may come back, one that closed it does not."""
    return int(packet.get("code") or CLOSE_ABNORMAL) if "reason" in packet else CLOSE_ABNORMAL


async def _handle(manager: StreamManager, wire: Wire, session: Session, message: Message) -> None:
    try:
        for event in await manager.parse(len(message), lambda: list(wire.receive(message))):
            await session.feed(event)
    except InputError as error:
        session.report_error(ErrorRaised(error.code, error.message, error.param, wire.client_event_id))


async def _send_loop(socket: WebSocket, wire: Wire, session: Session, greeting: Sequence[Message]) -> None:
    for message in greeting:
        await send(socket, message)
    async for event in session.events():
        for message in wire.send(event):
            await send(socket, message)
    await socket.close(CLOSE_SLOW_CLIENT if session.outbox.overflowed else CLOSE_GOING_AWAY)


async def receive(socket: WebSocket) -> Message | None:
    """The next message; None once the client is gone."""
    packet = await socket.receive()
    return None if packet["type"] == "websocket.disconnect" else _message(packet)


def _message(packet: AsgiMessage) -> Message:
    text: str | None = packet.get("text")
    data: bytes = packet.get("bytes") or b""
    return text if text is not None else data


async def send(socket: WebSocket, message: Message) -> None:
    if isinstance(message, str):
        await socket.send_text(message)
    else:
        await socket.send_bytes(message)


# --- server-sent events -----------------------------------------------------------------------------


def take_over_sse_shutdown() -> None:
    """Keep sse_starlette from cancelling streams as soon as uvicorn stops: `StreamManager.begin_shutdown` ends them.

    Changes sse_starlette for the whole process, so only the program calls it. It then has to call `abort_sse_streams`.
    """
    AppStatus.enable_automatic_graceful_drain = False


def abort_sse_streams() -> None:
    """Cancel the streams of server-sent events that are still open after the grace period."""
    AppStatus.should_exit = True


def sse(records: AsyncGenerator[dict[str, Any]]) -> EventSourceResponse:
    """Records as server-sent events, with a comment as keep-alive. `records` is closed when the client disconnects."""
    return EventSourceResponse(_sse_messages(records), ping=KEEP_ALIVE_S)


async def _sse_messages(records: AsyncGenerator[dict[str, Any]]) -> AsyncIterable[dict[str, str]]:
    async with aclosing(records):
        async for record in records:
            yield {"event": "message", "data": write_json(record)}


async def started(stream: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The stream, once its first element is there. An error before it is raised here, before a response has begun."""
    try:
        first = await anext(stream)
    except StopAsyncIteration:
        return _chain((), stream)
    except BaseException:
        await stream.aclose()
        raise
    return _chain((first,), stream)


async def _chain(first: Sequence[T], rest: AsyncGenerator[T]) -> AsyncGenerator[T]:
    async with aclosing(rest):
        for element in first:
            yield element
        async for element in rest:
            yield element
