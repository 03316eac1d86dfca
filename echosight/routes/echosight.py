"""The EchoSight protocol: /stream, /completions, /stop, /feedback, /init_options and /ws/stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError
from sse_starlette import EventSourceResponse

from echosight import events as ev
from echosight.errors import EchoSightError, EngineFull, InputError, WireError
from echosight.routes.auth import ClientDep, check_origin, client_of
from echosight.routes.dependencies import BodyDep, ManagerDep, SettingsDep, manager_of, settings_of
from echosight.routes.handshake import refusals, socket_route
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client
from echosight.server.transport import receive, serve, sse, started
from echosight.settings import Settings
from echosight.wire import Message
from echosight.wire.echosight import EchoSightWire, RecordWriter, acknowledgement, finish_reason
from echosight.wire.echosight_messages import Content, Limits, read_content, read_options
from echosight.wire.fields import read_json, write_json

Record = dict[str, Any]

router = APIRouter(tags=["EchoSight"])
sockets = APIRouter()


def limits(settings: Settings) -> Limits:
    return Limits(settings.max_image_pixels, settings.max_audio_seconds)


async def parse_body(manager: StreamManager, body: str | bytes, settings: Settings) -> Content:
    return await manager.parse(len(body), lambda: read_content(read_json(body), limits(settings)))


async def feed(manager: StreamManager, client: Client, content: Content) -> Record:
    """Feed a body to the client's session. Returns the acknowledgement."""
    if content.stop:
        await manager.stop(client)
    responding = await manager.prefill(client, content.to_events()) if content.parts else False
    return acknowledgement(client.uid, "success", finish_reason(content, responding))


@router.post("/stream")
async def stream(client: ClientDep, manager: ManagerDep, settings: SettingsDep, body: BodyDep) -> Record:
    """A piece of live audio, with images or text that belong to it."""
    return await feed(manager, client, await parse_body(manager, body, settings))


@router.post("/completions")
async def completions(
    client: ClientDep, manager: ManagerDep, settings: SettingsDep, body: BodyDep
) -> EventSourceResponse:
    """The next response as server-sent events: to what /stream brings, or to the turn in the body itself."""
    content = await parse_body(manager, body, settings)
    if content.blank:  # a client that recorded nothing by mistake would wait for live speech without end
        raise InputError("There is no sound and no text in this turn", code="empty_turn", param="messages")
    await manager.check_readable(client)
    item = content.to_item()
    events = manager.generate(client, item)
    return sse(_records(client, events if item is None else await started(events)))


async def _records(client: Client, events: AsyncGenerator[ev.Output]) -> AsyncGenerator[Record]:
    records = RecordWriter(client.uid)
    try:
        async with aclosing(events):
            async for event in events:
                if (record := records.write(event)) is not None:
                    yield record
    except EchoSightError as error:
        yield {"id": client.uid, "error": {"code": error.code, "message": error.message}}


@router.post("/stop")
async def stop(client: ClientDep, manager: ManagerDep) -> Record:
    """Stop the client's own response."""
    await manager.stop(client)
    return acknowledgement(client.uid, "success", "stop")


class Feedback(BaseModel):
    """A user's rating of a response. `response_id` is data, never a path."""

    model_config = ConfigDict(extra="ignore")

    response_id: StrictStr
    rating: Literal["like", "dislike"]
    comment: StrictStr = ""


@router.post("/feedback")
async def feedback(client: ClientDep, manager: ManagerDep, body: BodyDep) -> Record:
    """Append a rating to the feedback file."""
    try:
        rating = Feedback.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        problem = "Invalid JSON" if first["type"] == "json_invalid" else first["msg"]
        raise InputError(f"{field}: {problem}" if field else problem, param=field or None, status=422) from error
    await manager.feedback({"uid": client.uid, **rating.model_dump()})
    return acknowledgement(client.uid, "success", "done")


@router.post("/init_options")
async def init_options(client: ClientDep, manager: ManagerDep, settings: SettingsDep, body: BodyDep) -> Record:
    """Choose voice, prompts and thresholds for the client's own session; its conversation starts again."""
    options, sample = await manager.parse(len(body), lambda: read_options(read_json(body), limits(settings)))
    if sample is not None:
        await manager.upload_customized_audio(client, sample if sample.pcm else None)
    if options is not None:
        await manager.update_customized_options(client, options)
    await manager.sys_prompt_init(client)
    return acknowledgement(client.uid, manager.engine.name, "done")


@socket_route(sockets, "/ws/stream", "/ws/api/v1/stream")
async def ws_stream(socket: WebSocket) -> None:
    """Bodies as for /stream, one acknowledgement each; after ``subscribe``, responses come on the same socket."""
    async with refusals(socket):
        check_origin(socket)
        client = client_of(socket)
        await socket.accept()
        while (message := await receive(socket)) is not None:
            if _is_subscribe(message):
                await _serve_subscriber(socket, client, message)
                return
            await socket.send_text(write_json(await _acknowledge(socket, client, message)))


async def _acknowledge(socket: WebSocket, client: Client, message: Message) -> Record:
    manager, settings = manager_of(socket), settings_of(socket)
    try:
        if isinstance(message, bytes):
            raise InputError("Send subscribe before binary audio", code="not_subscribed")
        return await feed(manager, client, await parse_body(manager, message, settings))
    except EngineFull as error:
        return {"error": error.message, "code": error.code, "retry_after": error.retry_after}
    except EchoSightError as error:
        return {"error": error.message, "code": error.code}


def _is_subscribe(message: Message) -> bool:
    if isinstance(message, bytes) or "subscribe" not in message:
        return False
    try:
        body = read_json(message)
    except WireError:
        return False
    return isinstance(body, dict) and body.get("type") == "subscribe"


async def _serve_subscriber(socket: WebSocket, client: Client, first: Message) -> None:
    async with manager_of(socket).sessions.connect(client) as entry:
        wire = EchoSightWire(client.uid, limits(settings_of(socket)))
        await serve(socket, wire, entry, first=[first])
