"""`/v1/audio/transcriptions` and `/v1/audio/speech`."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Form, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from echosight.audio.formats import decode_audio, wav_header
from echosight.audio.pcm import pcm_to_float
from echosight.audio.resampling import Resampler, resample
from echosight.conversation import AudioPart, UserTurn
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade.sentences import SentenceSplitter, strip_markup
from echosight.errors import EngineFailure, InputError
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import GenerateOptions
from echosight.routes.auth import admit, body_of, settings_of
from echosight.routes.openai_common import checked, ready, transcribe
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.server.manager import StreamManager
from echosight.settings import Settings
from echosight.wire.openai import transcription

Json = dict[str, Any]

UNKNOWN_LENGTH = 0xFFFF_FFFF - 36
router = APIRouter(tags=["OpenAI"], route_class=OpenAIErrorRoute)
Admitted = Annotated[None, Depends(admit)]
Chosen = Annotated[Settings, Depends(settings_of)]
Body = Annotated[bytes, Depends(body_of)]


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
        len(data), lambda: resample(decode_audio(data, name, max_seconds=settings.max_audio_seconds), INPUT_SAMPLE_RATE)
    )
    turn = UserTurn()
    turn.add(AudioPart(chunk.pcm, duration_ms=chunk.samples * 1000 // INPUT_SAMPLE_RATE))
    transcript = await transcribe(manager, turn, language or settings.language)
    if transcript is None:
        raise InputError("This engine does not tell what it hears", code="unsupported", status=501)
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
async def speech(request: Request, _: Admitted, settings: Chosen, body: Body) -> Response:
    """A text spoken: wav and pcm (24 kHz) as they are made, the others once they are whole."""
    asked = checked(SpeechRequest, body)
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
    options = GenerateOptions(
        voice=voice or None, language=settings.language, speed=asked.speed, speaking_style=manner or None
    )
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
    splitter = SentenceSplitter()
    resampler = Resampler(engine.output_rate, 24_000)
    for sentence in [*splitter.push(text), *splitter.flush()]:
        async with aclosing(engine.tts.synthesize(strip_markup(sentence.text), options)) as pieces:
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
