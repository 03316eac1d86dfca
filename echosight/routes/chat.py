"""`/v1/chat/completions`: text, images and speech in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from echosight.conversation import Conversation, Item, UserTurn, new_id
from echosight.errors import EchoSightError
from echosight.options import GenerateOptions
from echosight.routes.auth import admit, body_of, settings_of
from echosight.routes.openai_common import checked, ready, transcribe
from echosight.routes.openai_errors import OpenAIErrorRoute, refusal
from echosight.server.manager import StreamManager
from echosight.settings import Settings
from echosight.wire.openai import chat_completions

Json = dict[str, Any]

router = APIRouter(tags=["OpenAI"], route_class=OpenAIErrorRoute)
Admitted = Annotated[None, Depends(admit)]
Chosen = Annotated[Settings, Depends(settings_of)]
Body = Annotated[bytes, Depends(body_of)]


@router.post("/v1/chat/completions")
async def completions(request: Request, _: Admitted, settings: Chosen, body: Body) -> Response:
    """An answer in text to messages of text, pictures (data URIs) and speech."""
    manager = ready(request)
    asked = checked(chat_completions.Request, body)
    conversation = await manager.read(
        len(body), lambda: asked.conversation(settings.max_image_pixels, settings.max_audio_seconds)
    )
    conversation.items[:] = [await _understood(manager, item) for item in conversation]
    completion = chat_completions.CompletionBuilder(new_id("chatcmpl"), asked.model or manager.engine.name, asked.stops)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    chunks = _chunks(manager, conversation, asked.options, completion, usage)
    if asked.stream:
        return StreamingResponse(_sse(chunks), media_type="text/event-stream")
    async with aclosing(chunks):
        async for _chunk in chunks:
            pass
    return JSONResponse(completion.to_json())


async def _understood(manager: StreamManager, item: Item) -> Item:
    """The item with what its speech says, as far as the engine tells."""
    audio = item.audio
    if audio is None or item.role != "user":
        return item
    transcript = await transcribe(manager, UserTurn.from_item(item), None)
    known = replace(audio, transcript=transcript.text if transcript else None)
    return replace(item, parts=tuple(known if part is audio else part for part in item.parts))


async def _chunks(
    manager: StreamManager,
    conversation: Conversation,
    options: GenerateOptions,
    completion: chat_completions.CompletionBuilder,
    include_usage: bool,
) -> AsyncGenerator[Json]:
    try:
        yield completion.start()
        async with aclosing(manager.engine.generate(conversation, options)) as pieces:
            async for piece in pieces:
                if (chunk := completion.feed(piece)) is not None:
                    yield chunk
                if completion.stopped:
                    break
        for chunk in completion.finish(include_usage):
            yield chunk
    finally:
        await manager.engine.release(conversation.id)


async def _sse(chunks: AsyncGenerator[Json]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        except EchoSightError as error:
            yield b"data: " + bytes(refusal(error).body) + b"\n\n"
        yield b"data: [DONE]\n\n"
