"""The EchoSight protocol: /stream, /completions, /stop, /feedback, /init_options and /ws/stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError
from sse_starlette import EventSourceResponse

from echosight.conversation import Item
from echosight.errors import EchoSightError, EngineFull, InputError
from echosight.routes.auth import Client, body_of, caller, manager_of, refuse_foreign_page, settings_of
from echosight.server.manager import StreamManager
from echosight.server.transport import receive, serve, sse
from echosight.settings import Settings
from echosight.wire import Message
from echosight.wire.echosight import EchoSightWire, RecordWriter, acknowledgement, finish_reason
from echosight.wire.echosight_messages import Content, Limits, read_content, read_options
from echosight.wire.fields import read_json

Known = Annotated[Client, Depends(caller)]
Manager = Annotated[StreamManager, Depends(manager_of)]
Chosen = Annotated[Settings, Depends(settings_of)]
Body = Annotated[bytes, Depends(body_of)]
Record = dict[str, Any]

router = APIRouter(tags=["EchoSight"])
sockets = APIRouter()


def limits(settings: Settings) -> Limits:
    return Limits(settings.max_image_pixels, settings.max_audio_seconds)


async def read(manager: StreamManager, body: str | bytes, settings: Settings) -> Content:
    return await manager.read(len(body), lambda: read_content(read_json(body), limits(settings)))


async def take(manager: StreamManager, who: Client, content: Content) -> Record:
    """Feed a body to the caller's session; the acknowledgement."""
    if content.stop:
        await manager.stop(who.key)
    answering = await manager.prefill(who.key, content.to_events()) if content.parts else False
    return acknowledgement(who.uid, "success", finish_reason(content, answering))


@router.post("/stream")
async def stream(who: Known, manager: Manager, settings: Chosen, body: Body) -> Record:
    """A piece of live sound, with pictures or text that belong to it."""
    return await take(manager, who, await read(manager, body, settings))


@router.post("/completions")
async def completions(who: Known, manager: Manager, settings: Chosen, body: Body) -> EventSourceResponse:
    """The next answer as server-sent events: to what /stream brings, or to the turn in the body itself."""
    content = await read(manager, body, settings)
    if content.blank:  # whoever records nothing by mistake would wait for ever for live speech
        raise InputError("There is no sound and no text in this turn", code="empty_turn", param="messages")
    await manager.may_read(who.key)
    return sse(_records(who, manager, content.to_item()))


async def _records(who: Client, manager: StreamManager, item: Item | None) -> AsyncGenerator[Record]:
    records = RecordWriter(who.uid)
    try:
        async with aclosing(manager.generate(who.key, item)) as events:
            async for event in events:
                if (record := records.write(event)) is not None:
                    yield record
    except EchoSightError as error:
        yield {"id": who.uid, "error": {"code": error.code, "message": error.message}}


@router.post("/stop")
async def stop(who: Known, manager: Manager) -> Record:
    """Stop the caller's own answer."""
    await manager.stop(who.key)
    return acknowledgement(who.uid, "success", "stop")


class Feedback(BaseModel):
    """What a user thought of an answer. `response_id` is data, never a path."""

    model_config = ConfigDict(extra="ignore")

    response_id: StrictStr
    rating: Literal["like", "dislike"]
    comment: StrictStr = ""


@router.post("/feedback")
async def feedback(who: Known, manager: Manager, body: Body) -> Record:
    """Append what the user thought of an answer to the feedback file."""
    try:
        given = Feedback.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = (
            f"{field}: {first['msg']}" if field else "Invalid JSON" if first["type"] == "json_invalid" else first["msg"]
        )
        raise InputError(message, param=field or None, status=422) from error
    await manager.feedback({"uid": who.uid, **given.model_dump()})
    return acknowledgement(who.uid, "success", "done")


@router.post("/init_options")
async def init_options(who: Known, manager: Manager, settings: Chosen, body: Body) -> Record:
    """Choose voice, prompts and thresholds for the caller's own session; the conversation begins anew."""
    options, sample = await manager.read(len(body), lambda: read_options(read_json(body), limits(settings)))
    if sample is not None:
        await manager.upload_customized_audio(who.key, sample if sample.pcm else None)
    if options is not None:
        await manager.update_customized_options(who.key, options)
    await manager.sys_prompt_init(who.key)
    return acknowledgement(who.uid, manager.engine.name, "done")


@sockets.websocket("/ws/stream")
@sockets.websocket("/ws/api/v1/stream")
async def ws_stream(socket: WebSocket) -> None:
    """Bodies as for /stream, one acknowledgement each; after ``subscribe`` the answers come on the same socket."""
    try:
        refuse_foreign_page(socket)
        who = caller(socket)
    except InputError as error:
        await socket.send_denial_response(JSONResponse({"detail": error.message}, error.status))
        return
    manager, settings = manager_of(socket), settings_of(socket)
    await socket.accept()
    while (message := await receive(socket)) is not None:
        if _subscribes(message):
            await _serve_subscriber(socket, who, message)
            return
        await socket.send_text(orjson.dumps(await _reply(message, who, manager, settings)).decode())


async def _reply(message: Message, who: Client, manager: StreamManager, settings: Settings) -> Record:
    try:
        if isinstance(message, bytes):
            raise InputError("Send subscribe before binary audio", code="not_subscribed")
        return await take(manager, who, await read(manager, message, settings))
    except EngineFull as error:
        return {"error": error.message, "code": error.code, "retry_after": error.retry_after}
    except EchoSightError as error:
        return {"error": error.message, "code": error.code}


def _subscribes(message: Message) -> bool:
    if isinstance(message, bytes) or "subscribe" not in message:
        return False
    try:
        body = orjson.loads(message)
    except orjson.JSONDecodeError:
        return False
    return isinstance(body, dict) and body.get("type") == "subscribe"


async def _serve_subscriber(socket: WebSocket, who: Client, first: Message) -> None:
    manager, settings = manager_of(socket), settings_of(socket)
    try:
        async with manager.connect(who.key) as session:
            wire = EchoSightWire(who.uid, limits(settings))
            await serve(socket, wire, session, first)
    except EngineFull as error:
        await socket.close(1013, error.message)
    except InputError as error:
        await socket.close(1008, error.message)
