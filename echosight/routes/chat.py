"""`/v1/chat/completions`: text, images and speech in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, StreamingResponse

from echosight.conversation import Conversation, Item, UserTurn, new_id
from echosight.errors import EchoSightError
from echosight.options import GenerateOptions
from echosight.routes.auth import require_token
from echosight.routes.dependencies import BodyDep, ReadyManagerDep, SettingsDep
from echosight.routes.openai_errors import OpenAIErrorRoute, openai_error_response, validate
from echosight.server.engine_host import EngineHost
from echosight.server.transport import started
from echosight.wire.fields import write_json
from echosight.wire.openai import chat_completions

Json = dict[str, Any]

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_token)], route_class=OpenAIErrorRoute)


@router.post("/v1/chat/completions")
async def completions(manager: ReadyManagerDep, settings: SettingsDep, body: BodyDep) -> Response:
    """A response in text to messages of text, images (data URIs) and speech."""
    request = validate(chat_completions.Request, body)
    conversation = await manager.parse(
        len(body), lambda: request.conversation(settings.max_image_pixels, settings.max_audio_seconds)
    )
    completion = chat_completions.CompletionBuilder(
        new_id("chatcmpl"), request.model or manager.engine.name, request.stops
    )
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    chunks = _chunks(manager.engine, conversation, request.options, completion, include_usage)
    if request.stream:
        return StreamingResponse(_sse(await started(chunks)), media_type="text/event-stream")
    async with aclosing(chunks):
        async for _ in chunks:
            pass
    return JSONResponse(completion.to_json())


async def _chunks(
    engine: EngineHost,
    conversation: Conversation,
    options: GenerateOptions,
    completion: chat_completions.CompletionBuilder,
    include_usage: bool,
) -> AsyncGenerator[Json]:
    """The completion's chunks. The first one comes once a generation slot is free and all speech is transcribed."""
    try:
        async with engine.reserve(conversation.id):
            conversation.items[:] = [await _with_transcript(engine, item) for item in conversation]
            yield completion.start()
            async with aclosing(engine.generate(conversation, options)) as generated:
                async for engine_chunk in generated:
                    if (chunk := completion.feed(engine_chunk)) is not None:
                        yield chunk
                    if completion.stopped:
                        break
        for chunk in completion.finish(include_usage):
            yield chunk
    finally:
        await engine.release(conversation.id)


async def _with_transcript(engine: EngineHost, item: Item) -> Item:
    """The item with the transcript of its speech, where the engine makes one."""
    audio = item.audio
    if audio is None or item.role != "user":
        return item
    transcript = await engine.transcribe(UserTurn.from_item(item))
    transcribed = replace(audio, transcript=transcript.text if transcript else None)
    return replace(item, parts=tuple(transcribed if part is audio else part for part in item.parts))


async def _sse(chunks: AsyncGenerator[Json]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield b"data: " + write_json(chunk).encode() + b"\n\n"
        except EchoSightError as error:
            yield b"data: " + bytes(openai_error_response(error).body) + b"\n\n"
        yield b"data: [DONE]\n\n"
