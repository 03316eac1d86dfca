"""Items of the conversation as JSON, and JSON as items."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from echosight.audio.g711 import alaw_decode, alaw_encode, ulaw_decode, ulaw_encode
from echosight.audio.resampling import resample
from echosight.conversation import AudioPart, ImagePart, Item, Part, TextPart, ToolCall, ToolResult, new_id, to_chunk
from echosight.errors import InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, pcm_ms
from echosight.vision.images import read_image
from echosight.wire.fields import decode_base64, read_data_uri
from echosight.wire.realtime import schema
from echosight.wire.realtime.fields import invalid_value, missing_parameter

Json = dict[str, Any]

MAX_AUDIO_CHARS = 15 << 20


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoding of speech: PCM16 where `decode` and `encode` are None. `rate` in Hz."""

    rate: int
    decode: Callable[[bytes], bytes] | None = None
    encode: Callable[[bytes], bytes] | None = None

    def read(self, text: Any, param: str) -> AudioChunk:
        """The speech of a base64 string. Raises `WireError` that names `param`."""
        if not isinstance(text, str):
            raise WireError(f"Invalid type for '{param}': expected base64.", code="invalid_type", param=param)
        if len(text) > MAX_AUDIO_CHARS:
            raise WireError(f"'{param}' is longer than 15 MiB.", code="string_above_max_length", param=param)
        message = f"Invalid '{param}': expected base64."
        data = decode_base64(text, param, message=message, code="invalid_value")
        if self.decode is not None:
            data = self.decode(data)
        elif len(data) % 2:
            raise invalid_value(f"Invalid '{param}': PCM16 has two bytes a sample.", param)
        return AudioChunk(data, self.rate)

    def write(self, chunk: AudioChunk) -> str:
        """The base64 string of a chunk, resampled to `rate`."""
        pcm = chunk.pcm if chunk.rate == self.rate else resample(chunk, self.rate).pcm
        return base64.b64encode(self.encode(pcm) if self.encode is not None else pcm).decode()


_CODECS = {
    "audio/pcm": Codec(24_000),
    "audio/pcmu": Codec(8_000, ulaw_decode, ulaw_encode),
    "audio/pcma": Codec(8_000, alaw_decode, alaw_encode),
}


def format_of(encoding: str) -> Json:
    """The ``format`` object of an encoding, such as ``audio/pcm``."""
    return {"type": encoding, "rate": 24_000} if encoding == "audio/pcm" else {"type": encoding}


def codec_of(audio_format: Json) -> Codec:
    """The codec of a validated ``format`` object."""
    return _CODECS[audio_format["type"]]


def to_json(item: Item, *, audio_codec: Codec | None = None) -> Json:
    """An item as the service shows it. Its speech is included where `audio_codec` says how to encode it."""
    payload: Json = {"id": item.id, "object": "realtime.item"}
    for part in item.parts_of(ToolCall):
        payload |= {"type": "function_call", "status": item.status, "name": part.name}
        return payload | {"call_id": part.call_id, "arguments": part.arguments}
    for part in item.parts_of(ToolResult):
        payload |= {"type": "function_call_output", "status": item.status}
        return payload | {"call_id": part.call_id, "output": part.output}
    content = [_content(part, item.role, audio_codec) for part in item.parts]
    return payload | {"type": "message", "status": item.status, "role": item.role, "content": content}


def _content(part: Part, role: str, audio_codec: Codec | None) -> Json:
    direction = "output" if role == "assistant" else "input"
    match part:
        case TextPart(text):
            return {"type": f"{direction}_text", "text": text}
        case AudioPart(pcm=pcm, transcript=transcript):
            payload: Json = {"type": f"{direction}_audio", "transcript": transcript}
            return (
                payload | {"audio": audio_codec.write(to_chunk(part))} if audio_codec is not None and pcm else payload
            )
        case ImagePart(frame, detail=detail):
            data = base64.b64encode(frame.data).decode()
            return {"type": "input_image", "image_url": f"data:{frame.media_type};base64,{data}", "detail": detail}
        case ToolCall() | ToolResult():
            raise AssertionError("to_json writes calls and results as items of their own")


def from_json(data: Any, codec: Codec, max_pixels: int, path: str = "item") -> Item:
    """An item that a client creates. Raises `InputError` that names the field at fault, below `path`."""
    try:
        item = schema.check(schema.NewItem, {"item": data}, "").item
    except WireError as error:
        param = (error.param or "item").replace("item", path, 1)
        message = error.message.replace(f"'{error.param}'", f"'{param}'")
        raise WireError(message, code=error.code, param=param) from error
    if item.id == "root":
        raise invalid_value("Invalid value: 'root' is the place before all items.", f"{path}.id")
    item_id = item.id or new_id("item")
    match item:
        case schema.FunctionCall():
            call = ToolCall(item.call_id or new_id("call"), item.name, item.arguments)
            return Item("assistant", (call,), item_id, status=item.status or "completed")
        case schema.FunctionCallOutput():
            return Item("tool", (ToolResult(item.call_id, item.output),), item_id, status=item.status or "completed")
        case schema.Message():
            parts = tuple(_parts(item, codec, max_pixels, f"{path}.content"))
            return Item(item.role, parts, item_id, status=item.status or "completed")


def _parts(item: schema.Message, codec: Codec, max_pixels: int, path: str) -> Iterator[Part]:
    """The parts of a message: one of all its speech, as a turn has one, then text and images in order."""
    speech: list[bytes] = []
    transcripts: list[str] = []
    parts: list[Part] = []
    for index, content in enumerate(item.content):
        param = f"{path}[{index}]"
        match content.type:
            case "input_text" | "output_text" | "text":
                parts.append(TextPart(_require(content.text, f"{param}.text")))
            case "input_image":
                parts.append(_image(content, f"{param}.image_url", max_pixels))
            case "input_audio" | "output_audio" | "audio":
                if content.audio is not None:
                    speech.append(resample(codec.read(content.audio, f"{param}.audio"), INPUT_SAMPLE_RATE).pcm)
                if content.transcript is not None:
                    transcripts.append(content.transcript)
                elif content.audio is None:
                    raise missing_parameter(f"{param}.audio")
    if speech or transcripts:
        pcm = b"".join(speech)
        transcript = " ".join(filter(None, transcripts)) if transcripts else None
        yield AudioPart(pcm or None, duration_ms=pcm_ms(len(pcm)), transcript=transcript)
    yield from parts


def _require(value: str | None, param: str) -> str:
    if value is None:
        raise missing_parameter(param)
    return value


def _image(content: schema.Content, param: str, max_pixels: int) -> ImagePart:
    try:
        frame = read_image(read_data_uri(_require(content.image_url, param)), max_pixels)
    except InputError as error:
        raise WireError(error.message, code=error.code, param=param) from error
    return ImagePart(frame, detail=content.detail or "auto")
