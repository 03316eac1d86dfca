"""The chat completions dialect: messages as a conversation, an answer as a completion or as chunks of one."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Collection, Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.conversation import AudioPart, Conversation, ImagePart, Item, Part, TextPart, ToolCall, ToolResult
from echosight.engines import Chunk, GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import WireError
from echosight.events import Usage
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import GenerateOptions
from echosight.vision.images import read_data_uri, read_image

Json = dict[str, Any]

_FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


class Open(BaseModel):
    """Fields that nothing here depends on are passed over."""

    model_config = ConfigDict(extra="ignore")


class Function(Open):
    name: str
    arguments: str = ""


class Call(Open):
    id: str
    function: Function


class Picture(Open):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Sound(Open):
    data: str
    format: str = "wav"


class Content(Open):
    type: Literal["text", "image_url", "input_audio", "refusal"]
    text: str = ""
    image_url: Picture | None = None
    input_audio: Sound | None = None


class Message(Open):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None
    tool_calls: list[Call] = []
    tool_call_id: str = ""


class Signature(BaseModel):
    """A function that may be called, as it is written."""

    model_config = ConfigDict(extra="allow")

    name: str


class Tool(Open):
    type: Literal["function"] = "function"
    function: Signature


class NamedTool(Open):
    type: Literal["function"]
    function: Signature


class PlainFormat(Open):
    type: Literal["text"]


class StreamOptions(Open):
    include_usage: bool = False


class Request(Open):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    # Who asks for these cannot do without, so they are refused rather than passed over.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainFormat | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None

    @model_validator(mode="after")
    def _known_tool(self) -> Self:
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if named is not None and named not in [tool.function.name for tool in self.tools]:
            raise PydanticCustomError("tool_choice", f"tool_choice names none of the tools: '{named}'")
        return self

    @property
    def stops(self) -> list[str]:
        """What the answer ends before."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def conversation(self, max_pixels: int, max_seconds: float) -> Conversation:
        """The messages as a conversation. Raises `InputError` naming the one at fault."""
        items: list[Item] = []
        for at, message in enumerate(self.messages):
            parts = tuple(_parts(message, f"messages[{at}].content", max_pixels, max_seconds))
            if message.role == "tool":
                items.append(Item("tool", (ToolResult(message.tool_call_id, _text(parts)),)))
                continue
            if parts:
                items.append(Item("system" if message.role == "developer" else message.role, parts))
            calls = (ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
            items += [Item("assistant", (call,)) for call in calls]
        return Conversation(tools=tuple(_flat(tool) for tool in self.tools), items=items)

    @property
    def _choice(self) -> str | Json:
        choice = self.tool_choice
        return choice if isinstance(choice, str) else {"type": "function", "name": choice.function.name}

    @property
    def options(self) -> GenerateOptions:
        return GenerateOptions(
            speech=False,
            max_output_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            tool_choice=self._choice,
        )


def _flat(tool: Tool) -> Json:
    """Sessions hold functions as the Realtime protocol writes them."""
    return {"type": "function", **tool.function.model_dump(exclude_unset=True)}


def _text(parts: tuple[Part, ...]) -> str:
    return " ".join(part.text for part in parts if isinstance(part, TextPart))


def _parts(message: Message, where: str, max_pixels: int, max_seconds: float) -> Iterator[Part]:
    if isinstance(message.content, str):
        yield TextPart(message.content)
        return
    for at, content in enumerate(message.content or []):
        param = f"{where}[{at}]"
        if content.type == "input_audio" and content.input_audio is not None:
            yield _speech(content.input_audio, param, max_seconds)
        elif content.type == "image_url" and content.image_url is not None:
            picture = content.image_url
            yield ImagePart(read_image(read_data_uri(picture.url), max_pixels), detail=picture.detail)
        elif content.type in ("text", "refusal"):
            yield TextPart(content.text)
        else:
            raise WireError(f"{param}.{content.type} is missing", code="missing_required_parameter", param=param)


def _speech(sound: Sound, param: str, max_seconds: float) -> AudioPart:
    try:
        data = base64.b64decode(sound.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{param}.input_audio.data is not base64", code="invalid_value", param=param) from error
    chunk = resample(decode_audio(data, sound.format, max_seconds=max_seconds), INPUT_SAMPLE_RATE)
    return AudioPart(chunk.pcm, duration_ms=chunk.samples * 1000 // INPUT_SAMPLE_RATE)


class Stop:
    """Looks for the sequences that an answer ends before, and holds back what may be the beginning of one."""

    def __init__(self, sequences: Collection[str]) -> None:
        self.found = False
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def push(self, text: str) -> str:
        """What may be told, now that `text` has come."""
        held = self._held + text
        found = [at for sequence in self._sequences if (at := held.find(sequence)) >= 0]
        if found:
            self.found, self._held = True, ""
            return held[: min(found)]
        begun = (n for sequence in self._sequences for n in range(1, len(sequence)) if held.endswith(sequence[:n]))
        told = len(held) - max(begun, default=0)
        self._held = held[told:]
        return held[:told]

    def rest(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


class Completion:
    """An answer, put together or told piece by piece."""

    def __init__(self, completion_id: str, model: str, stops: Collection[str] = ()) -> None:
        self._head = {"id": completion_id, "created": int(time.time()), "model": model}
        self._text = ""
        self._stop = Stop(stops)
        self._calls: dict[str, Json] = {}
        self._summary = GenerationSummary()

    def begin(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""})

    def take(self, piece: Chunk) -> Json | None:
        """The chunk that tells of a piece; None where there is nothing to tell."""
        match piece:
            case TextChunk(text):
                return self._say(self._stop.push(text))
            case ToolCallChunk():
                return self._chunk({"tool_calls": [self._call(piece)]})
            case GenerationSummary():
                self._summary = piece
        return None

    @property
    def stopped(self) -> bool:
        """Whether the answer has come to what it ends before."""
        return self._stop.found

    def _say(self, text: str) -> Json | None:
        self._text += text
        return self._chunk({"content": text}) if text else None

    def _call(self, piece: ToolCallChunk) -> Json:
        told: Json = {"index": len(self._calls), "function": {"arguments": piece.arguments}}
        if (known := self._calls.get(piece.call_id)) is None:
            told |= {"id": piece.call_id, "type": "function"}
            told["function"]["name"] = piece.name
            self._calls[piece.call_id] = {**told, "function": dict(told["function"])}
        else:
            told["index"] = known["index"]
            known["function"]["arguments"] += piece.arguments
        return told

    def end(self, include_usage: bool) -> Iterator[Json]:
        """The last chunks."""
        if (held := self._say(self._stop.rest())) is not None:
            yield held
        yield self._chunk({}, self._finish)
        if include_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(self._summary.usage)}

    def whole(self) -> Json:
        message: Json = {"role": "assistant", "content": self._text or None, "refusal": None}
        if self._calls:
            calls = [{key: call[key] for key in ("id", "type", "function")} for call in self._calls.values()]
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        usage = _usage(self._summary.usage)
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    @property
    def _finish(self) -> str:
        return "tool_calls" if self._calls else _FINISH.get(self._summary.finish, "stop")

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def _usage(usage: Usage) -> Json:
    read = usage.input_text + usage.input_audio + usage.input_image
    made = usage.output_text + usage.output_audio
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
