"""`/v1/audio/transcriptions` and `/v1/audio/speech`."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Form, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from echosight.audio.formats import decode_audio, wav_header
from echosight.audio.pcm import pcm_to_float
from echosight.audio.resampling import Resampler, resample
from echosight.conversation import UserTurn, pcm_part
from echosight.engines.cascade.sentences import SentenceSplitter, strip_markup
from echosight.errors import EngineFailure, InputError
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import GenerateOptions
from echosight.routes.auth import require_token
from echosight.routes.dependencies import BodyDep, ReadyManagerDep, SettingsDep
from echosight.routes.openai_errors import OpenAIErrorRoute, validate
from echosight.server.engine_host import EngineHost
from echosight.server.manager import LARGE_BYTES, StreamManager
from echosight.server.transport import started
from echosight.settings import Settings
from echosight.wire.openai import transcription

Json = dict[str, Any]

SPEECH_SAMPLE_RATE = 24_000
UNKNOWN_LENGTH = 0xFFFF_FFFF - 36
"""What a WAV header says where the length is not known yet."""

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_token)], route_class=OpenAIErrorRoute)


@router.post("/v1/audio/transcriptions")
async def transcriptions(
    manager: ReadyManagerDep,
    settings: SettingsDep,
    file: UploadFile,
    language: Annotated[str | None, Form()] = None,
    response_format: Annotated[str, Form()] = "json",
    stream: Annotated[bool, Form()] = False,
) -> Response:
    """The transcript of a recording."""
    data = await file.read(settings.max_body_bytes + 1)
    if len(data) > settings.max_body_bytes:
        raise InputError("The file is too large", code="too_large", status=413, param="file")
    name = (file.filename or "").rpartition(".")[2] or file.content_type or "wav"
    chunk = await manager.parse(
        len(data), lambda: resample(decode_audio(data, name, max_seconds=settings.max_audio_seconds), INPUT_SAMPLE_RATE)
    )
    turn = UserTurn()
    turn.add(pcm_part(chunk.pcm))
    async with manager.engine.slots.hold():
        transcript = await manager.engine.transcribe(turn, language or settings.language)
    if transcript is None:
        raise InputError("This engine has no speech-to-text", code="unsupported", status=501)
    if stream:
        return Response(transcription.sse_events(transcript, chunk.seconds), media_type="text/event-stream")
    media_type, content = transcription.format_transcript(transcript, chunk.seconds, response_format)
    return Response(content, media_type=media_type)


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
async def speech(manager: ReadyManagerDep, settings: SettingsDep, body: BodyDep) -> Response:
    """A text as speech: wav and pcm (24 kHz) are streamed, other formats are sent when complete."""
    request = validate(SpeechRequest, body)
    # The first piece is awaited, so that an error before it becomes an HTTP status.
    chunks = await started(_speech_stream(manager, settings, request))
    if request.stream_format == "sse":
        return StreamingResponse(_speech_events(chunks), media_type="text/event-stream")
    return StreamingResponse(chunks, media_type=_MEDIA_TYPES[request.response_format])


async def _speech_stream(manager: StreamManager, settings: Settings, request: SpeechRequest) -> AsyncGenerator[bytes]:
    """The speech as bytes of the requested format."""
    async with aclosing(_synthesize(manager.engine, request.input, _options(manager, settings, request))) as chunks:
        if request.response_format in ("wav", "pcm"):
            header = wav_header(SPEECH_SAMPLE_RATE, UNKNOWN_LENGTH) if request.response_format == "wav" else b""
            async for chunk in chunks:
                yield header + chunk
                header = b""
            return
        pcm = b"".join([chunk async for chunk in chunks])
    container, encoding = _FILES[request.response_format]
    # Encoding takes long whatever the size, so it always runs in the thread.
    yield await manager.parse(LARGE_BYTES, lambda: _encode(pcm, container, encoding))


def _options(manager: StreamManager, settings: Settings, request: SpeechRequest) -> GenerateOptions:
    requested = request.voice if isinstance(request.voice, str) else str(request.voice.get("id", ""))
    voices = manager.engine.voices
    return GenerateOptions(
        voice=(requested if requested in voices or not voices else settings.voice) or None,
        language=settings.language,
        speed=request.speed,
        speaking_style=request.instructions or settings.default_tts_instructions or None,
    )


async def _speech_events(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk:
                event = {"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()}
                yield b"data: " + orjson.dumps(event) + b"\n\n"
    # A TTS counts no tokens.
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    yield b"data: " + orjson.dumps({"type": "speech.audio.done", "usage": usage}) + b"\n\n"


async def _synthesize(engine: EngineHost, text: str, options: GenerateOptions) -> AsyncGenerator[bytes]:
    """PCM16 at 24 kHz, sentence by sentence."""
    splitter = SentenceSplitter()
    sentences = [strip_markup(sentence.text) for sentence in [*splitter.push(text), *splitter.flush()]]
    resampler = Resampler(engine.output_rate, SPEECH_SAMPLE_RATE)
    async with aclosing(engine.synthesize(sentences, options)) as chunks:
        async for chunk in chunks:
            yield resampler.push(chunk.pcm)
    yield resampler.push(b"", last=True)


def _encode(pcm: bytes, container: str, encoding: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    try:
        soundfile.write(file, pcm_to_float(pcm), SPEECH_SAMPLE_RATE, format=container, subtype=encoding)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise EngineFailure(f"{container} cannot be encoded here") from error
    return file.getvalue()
