"""Items of the conversation as JSON, and JSON as items."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from echosight.audio.g711 import alaw_decode, alaw_encode, ulaw_decode, ulaw_encode
from echosight.audio.resampling import resample
from echosight.conversation import AudioPart, ImagePart, Item, Part, TextPart, ToolCall, ToolResult, new_id, to_chunk
from echosight.errors import InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.vision.images import read_data_uri, read_image
from echosight.wire.realtime import schema
from echosight.wire.realtime.fields import invalid

Json = dict[str, Any]

MAX_AUDIO_CHARS = 15 << 20


@dataclass(frozen=True, slots=True)
class Codec:
    """How the bytes of speech are written in messages."""

    rate: int
    decode: Callable[[bytes], bytes] | None = None
    encode: Callable[[bytes], bytes] | None = None

    def read(self, text: Any, param: str) -> AudioChunk:
        """Base64 of this format. Raises `WireError`."""
        if not isinstance(text, str):
            raise WireError(f"Invalid type for '{param}': expected base64.", code="invalid_type", param=param)
        if len(text) > MAX_AUDIO_CHARS:
            raise WireError(f"'{param}' is longer than 15 MiB.", code="string_above_max_length", param=param)
        try:
            data = binascii.a2b_base64(text, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise invalid(f"Invalid '{param}': expected base64.", param) from error
        if self.decode is not None:
            data = self.decode(data)
        elif len(data) % 2:
            raise invalid(f"Invalid '{param}': PCM16 has two bytes a sample.", param)
        return AudioChunk(data, self.rate)

    def write(self, chunk: AudioChunk) -> str:
        """Base64 of a chunk, which is resampled if need be."""
        pcm = chunk.pcm if chunk.rate == self.rate else resample(chunk, self.rate).pcm
        return base64.b64encode(self.encode(pcm) if self.encode is not None else pcm).decode()


_CODECS = {
    "audio/pcm": Codec(24_000),
    "audio/pcmu": Codec(8_000, ulaw_decode, ulaw_encode),
    "audio/pcma": Codec(8_000, alaw_decode, alaw_encode),
}


def format_of(kind: str) -> Json:
    """The ``format`` object of an encoding."""
    return {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}


def codec_of(audio_format: Json) -> Codec:
    """The codec of a ``format`` object that was checked."""
    return _CODECS[audio_format["type"]]


def to_json(item: Item, *, full: Codec | None = None) -> Json:
    """An item as the service shows it. Speech is left out, unless `full` says how to write it."""
    shown: Json = {"id": item.id, "object": "realtime.item"}
    for part in item.parts_of(ToolCall):
        shown |= {"type": "function_call", "status": item.status, "name": part.name}
        return shown | {"call_id": part.call_id, "arguments": part.arguments}
    for part in item.parts_of(ToolResult):
        shown |= {"type": "function_call_output", "status": item.status}
        return shown | {"call_id": part.call_id, "output": part.output}
    content = [_content(part, item.role, full) for part in item.parts]
    return shown | {"type": "message", "status": item.status, "role": item.role, "content": content}


def _content(part: Part, role: str, full: Codec | None) -> Json:
    way = "output" if role == "assistant" else "input"
    match part:
        case TextPart(text):
            return {"type": f"{way}_text", "text": text}
        case AudioPart(transcript=transcript):
            shown: Json = {"type": f"{way}_audio", "transcript": transcript}
            return shown | {"audio": full.write(to_chunk(part))} if full is not None and part.pcm else shown
        case ImagePart(frame, detail=detail):
            data = base64.b64encode(frame.data).decode()
            return {"type": "input_image", "image_url": f"data:{frame.media_type};base64,{data}", "detail": detail}
        case ToolCall() | ToolResult():
            raise AssertionError("calls are items of their own")


def from_json(data: Any, codec: Codec, max_pixels: int, place: str = "item") -> Item:
    """An item that a client creates. Raises `InputError` naming the field at fault."""
    try:
        item = schema.check(schema.NewItem, {"item": data}, "").item
    except WireError as error:
        renamed = (error.param or "item").replace("item", place, 1)
        raise WireError(
            error.message.replace(f"'{error.param}'", f"'{renamed}'"), code=error.code, param=renamed
        ) from error
    if item.id == "root":
        raise invalid("Invalid value: 'root' is the place before all items.", f"{place}.id")
    item_id = item.id or new_id("item")
    match item:
        case schema.FunctionCall():
            call = ToolCall(item.call_id or new_id("call"), item.name, item.arguments)
            return Item("assistant", (call,), item_id, status=item.status or "completed")
        case schema.FunctionCallOutput():
            return Item("tool", (ToolResult(item.call_id, item.output),), item_id, status=item.status or "completed")
        case schema.Message():
            parts = tuple(_parts(item, codec, max_pixels, f"{place}.content"))
            return Item(item.role, parts, item_id, status=item.status or "completed")


def _parts(item: schema.Message, codec: Codec, max_pixels: int, place: str) -> Iterator[Part]:
    """The parts of a message; pieces of speech become one part, as a turn has one."""
    speech: list[AudioChunk] = []
    transcript: str | None = None
    parts: list[Part] = []
    for at, content in enumerate(item.content):
        where = f"{place}[{at}]"
        match content.type:
            case "input_text" | "output_text" | "text":
                parts.append(TextPart(_given(content.text, f"{where}.text")))
            case "input_image":
                parts.append(_image(content, where, max_pixels))
            case "input_audio" | "output_audio" | "audio":
                if content.audio is None and content.transcript is None:
                    _given(None, f"{where}.audio")
                if content.audio is not None:
                    speech.append(codec.read(content.audio, f"{where}.audio"))
                if content.transcript is not None:
                    transcript = f"{transcript} {content.transcript}" if transcript else content.transcript
    if speech or transcript is not None:
        pcm = b"".join(resample(chunk, INPUT_SAMPLE_RATE).pcm for chunk in speech)
        yield AudioPart(pcm or None, duration_ms=len(pcm) * 500 // INPUT_SAMPLE_RATE, transcript=transcript)
    yield from parts


def _given(value: str | None, param: str) -> str:
    if value is None:
        raise WireError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    return value


def _image(content: schema.Content, where: str, max_pixels: int) -> ImagePart:
    param = f"{where}.image_url"
    try:
        frame = read_image(read_data_uri(_given(content.image_url, param)), max_pixels)
    except InputError as error:
        raise WireError(error.message, code=error.code, param=param) from error
    return ImagePart(frame, detail=content.detail or "auto")
