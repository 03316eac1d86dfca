"""Plain OpenAI doors to the same engine: transcriptions, speech, chat completions and the list of models."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Depends, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echosight.audio import decode_audio, pcm_to_float, wav_header
from echosight.conversation import AudioPart, Conversation, Item, OpenTurn, new_id
from echosight.engines.cascade import Cascade
from echosight.engines.sentences import Splitter, speakable
from echosight.errors import EchoSightError, EngineFailure, EngineFull, InputError
from echosight.manager import StreamManager
from echosight.media import HEARD_HZ, Transcript
from echosight.options import GenerateOptions
from echosight.resampling import Resampler, resample
from echosight.routes import chat, transcripts
from echosight.routes.callers import admit, body_of, manager_of, settings_of
from echosight.routes.door import Door, fault, refusal
from echosight.settings import Settings

Json = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
UNKNOWN_LENGTH = 0xFFFF_FFFF - 36
STARTED = int(time.time())


def ready(request: Request) -> StreamManager:
    """The manager, once its engine can answer. Raises `EngineFull` before."""
    manager = manager_of(request)
    if not manager.ready:
        raise EngineFull("The engine is loading", retry_after=2)
    return manager


router = APIRouter(tags=["OpenAI"], route_class=Door)
Admitted = Annotated[None, Depends(admit)]
Chosen = Annotated[Settings, Depends(settings_of)]
Body = Annotated[bytes, Depends(body_of)]


@router.get("/v1/models")
async def models(request: Request, _: Admitted) -> Json:
    """The one model there is."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str, _: Admitted) -> Json:
    """The model by its name."""
    known = _model(request)
    if name != known["id"]:
        message = f"The model '{name}' does not exist: this server has '{known['id']}'"
        raise InputError(message, code="model_not_found", param="model", status=404)
    return known


def _model(request: Request) -> Json:
    return {"id": manager_of(request).engine.name, "object": "model", "created": STARTED, "owned_by": "echosight"}


# --- chat -------------------------------------------------------------------------------------------


@router.post("/v1/chat/completions")
async def completions(request: Request, _: Admitted, settings: Chosen, body: Body) -> Response:
    """An answer in text to messages of text, pictures (data URIs) and speech."""
    manager = ready(request)
    asked = _checked(chat.Request, body)
    conversation = await manager.read(
        len(body), lambda: asked.conversation(settings.max_image_pixels, settings.max_audio_seconds)
    )
    conversation.items[:] = [await _understood(manager, item) for item in conversation]
    completion = chat.Completion(new_id("chatcmpl"), asked.model or manager.engine.name, asked.stops)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    chunks = _chunks(manager, conversation, asked.options, completion, usage)
    if asked.stream:
        return StreamingResponse(_sse(chunks), media_type="text/event-stream")
    async with aclosing(chunks):
        async for _chunk in chunks:
            pass
    return JSONResponse(completion.whole())


async def _understood(manager: StreamManager, item: Item) -> Item:
    """The item with what its speech says, as far as the engine tells."""
    audio = item.audio
    if audio is None or item.role != "user":
        return item
    transcript = await _transcribe(manager, OpenTurn.of(item), None)
    known = replace(audio, transcript=transcript.text if transcript else None)
    return replace(item, parts=tuple(known if part is audio else part for part in item.parts))


async def _chunks(
    manager: StreamManager,
    conversation: Conversation,
    options: GenerateOptions,
    completion: chat.Completion,
    include_usage: bool,
) -> AsyncGenerator[Json]:
    try:
        yield completion.begin()
        async with aclosing(manager.engine.generate(conversation, options)) as pieces:
            async for piece in pieces:
                if (chunk := completion.take(piece)) is not None:
                    yield chunk
                if completion.stopped:
                    break
        for chunk in completion.end(include_usage):
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


# --- hearing ----------------------------------------------------------------------------------------


@router.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    _: Admitted,
    settings: Chosen,
    file: UploadFile,
    language: Annotated[str | None, Form()] = None,
    response_format: Annotated[str, Form()] = "json",
    stream: Annotated[bool, Form()] = False,
) -> Response:
    """What a recording says."""
    manager = ready(request)
    data = await file.read(settings.max_body_bytes + 1)
    if len(data) > settings.max_body_bytes:
        raise InputError("The file is too large", code="too_large", status=413, param="file")
    name = (file.filename or "").rpartition(".")[2] or file.content_type or "wav"
    chunk = await manager.read(
        len(data), lambda: resample(decode_audio(data, name, max_seconds=settings.max_audio_seconds), HEARD_HZ)
    )
    turn = OpenTurn()
    turn.add(AudioPart(chunk.pcm, duration_ms=chunk.samples * 1000 // HEARD_HZ))
    transcript = await _transcribe(manager, turn, language or settings.language)
    if transcript is None:
        raise InputError("This engine does not tell what it hears", code="unsupported", status=501)
    if stream:
        return Response(transcripts.events(transcript, chunk.seconds), media_type="text/event-stream")
    return transcripts.written(transcript, chunk.seconds, response_format)


async def _transcribe(manager: StreamManager, turn: OpenTurn, language: str | None) -> Transcript | None:
    conversation = Conversation(language=language)
    try:
        return await manager.engine.settle(conversation, turn) if turn.duration_ms else Transcript("")
    finally:
        await manager.engine.release(conversation.id)


# --- speaking ---------------------------------------------------------------------------------------


class SpeechRequest(BaseModel):
    """The body of POST /v1/audio/speech."""

    model_config = ConfigDict(extra="ignore")

    input: str = Field(min_length=1, max_length=16_384)
    model: str = ""
    voice: str | Json = ""
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"


_FILES = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}
_MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


@router.post("/v1/audio/speech")
async def speech(request: Request, _: Admitted, settings: Chosen, body: Body) -> Response:
    """A text spoken: wav and pcm (24 kHz) as they are made, the others once they are whole."""
    asked = _checked(SpeechRequest, body)
    spoken = await _spoken(ready(request), settings, asked)
    if asked.stream_format == "sse":
        return StreamingResponse(_speech_events(spoken), media_type="text/event-stream")
    return StreamingResponse(spoken, media_type=_MEDIA_TYPES[asked.response_format])


async def _spoken(manager: StreamManager, settings: Settings, asked: SpeechRequest) -> AsyncGenerator[bytes]:
    """The speech as the bytes of its format. What goes wrong before the first of them is raised here."""
    engine = manager.engine
    if not isinstance(engine, Cascade):
        raise InputError("This engine has no voice that reads texts", code="unsupported", status=501)
    named = asked.voice if isinstance(asked.voice, str) else str(asked.voice.get("id", ""))
    voice = named if named in engine.voices or not engine.voices else settings.voice
    manner = asked.instructions or settings.default_tts_instructions
    options = GenerateOptions(voice=voice or None, language=settings.language, speed=asked.speed, manner=manner or None)
    spoken = _speak(engine, asked.input, options)
    if asked.response_format in ("wav", "pcm"):
        head = wav_header(24_000, UNKNOWN_LENGTH) if asked.response_format == "wav" else b""
        return _after(head + await anext(spoken, b""), spoken)
    async with aclosing(spoken):
        pcm = b"".join([piece async for piece in spoken])
    kind, encoding = _FILES[asked.response_format]
    return _once(await manager.read(1 << 30, lambda: _encoded(pcm, kind, encoding)))


async def _after(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _speech_events(spoken: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(spoken):
        async for piece in spoken:
            if piece:
                event = {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
                yield b"data: " + orjson.dumps(event) + b"\n\n"
    # A voice does not count tokens.
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    yield b"data: " + orjson.dumps({"type": "speech.audio.done", "usage": usage}) + b"\n\n"


async def _speak(engine: Cascade, text: str, options: GenerateOptions) -> AsyncGenerator[bytes]:
    """PCM16 at 24 kHz, sentence by sentence."""
    splitter = Splitter()
    resampler = Resampler(engine.output_rate, 24_000)
    for sentence in [*splitter.feed(text), *splitter.finish()]:
        async with aclosing(engine.voice.speak(speakable(sentence.text), options)) as pieces:
            async for piece in pieces:
                yield resampler.push(piece.pcm)
    yield resampler.push(b"", last=True)


def _encoded(pcm: bytes, kind: str, encoding: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    try:
        soundfile.write(file, pcm_to_float(pcm), 24_000, format=kind, subtype=encoding)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise EngineFailure(f"{kind} cannot be written here") from error
    return file.getvalue()


def _checked(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        param, message = fault(error.errors(include_url=False, include_input=False, include_context=False))
        raise InputError(message, code="invalid_value", param=param) from error
