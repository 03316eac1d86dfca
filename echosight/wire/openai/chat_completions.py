"""The chat completions dialect: messages become a conversation, a response becomes a completion or chunks of one."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.conversation import (
    AudioPart,
    Conversation,
    ImagePart,
    Item,
    Part,
    TextPart,
    ToolCall,
    ToolResult,
    pcm_part,
)
from echosight.engines import Chunk, GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import WireError
from echosight.events import Usage
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import GenerateOptions
from echosight.vision.images import read_image
from echosight.wire.fields import decode_base64, read_data_uri

Json = dict[str, Any]

_FINISH_REASONS = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


class LenientModel(BaseModel):
    """Ignores unknown fields: clients send many that do not matter to the server."""

    model_config = ConfigDict(extra="ignore")


class CalledFunction(LenientModel):
    name: str
    arguments: str = ""


class FunctionToolCall(LenientModel):
    id: str
    function: CalledFunction


class ImageUrl(LenientModel):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class InputAudio(LenientModel):
    data: str
    format: str = "wav"


class Content(LenientModel):
    type: Literal["text", "image_url", "input_audio", "refusal"]
    text: str = ""
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None


class Message(LenientModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None
    tool_calls: list[FunctionToolCall] = []
    tool_call_id: str = ""


class FunctionSpec(BaseModel):
    """A function that the model may call; all its fields go to the model."""

    model_config = ConfigDict(extra="allow")

    name: str


class Tool(LenientModel):
    type: Literal["function"] = "function"
    function: FunctionSpec


class NamedTool(LenientModel):
    type: Literal["function"]
    function: FunctionSpec


class PlainFormat(LenientModel):
    type: Literal["text"]


class StreamOptions(LenientModel):
    include_usage: bool = False


class Request(LenientModel):
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
    # Clients that set these depend on them, so they are refused rather than ignored.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainFormat | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None

    @model_validator(mode="after")
    def _require_known_tool(self) -> Self:
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if named is not None and named not in [tool.function.name for tool in self.tools]:
            raise PydanticCustomError("tool_choice", f"tool_choice names none of the tools: '{named}'")
        return self

    @property
    def stops(self) -> list[str]:
        """The sequences that the response ends before."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def conversation(self, max_pixels: int, max_seconds: float) -> Conversation:
        """The messages as a conversation. Raises `InputError` that names the message at fault."""
        items: list[Item] = []
        for index, message in enumerate(self.messages):
            parts = tuple(_parts(message, f"messages[{index}].content", max_pixels, max_seconds))
            if message.role == "tool":
                items.append(Item("tool", (ToolResult(message.tool_call_id, _text(parts)),)))
                continue
            if parts:
                items.append(Item("system" if message.role == "developer" else message.role, parts))
            calls = (ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
            items += [Item("assistant", (call,)) for call in calls]
        return Conversation(tools=tuple(_flatten_tool(tool) for tool in self.tools), items=items)

    @property
    def options(self) -> GenerateOptions:
        choice = self.tool_choice
        return GenerateOptions(
            speech=False,
            max_output_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            tool_choice=choice if isinstance(choice, str) else {"type": "function", "name": choice.function.name},
        )


def _flatten_tool(tool: Tool) -> Json:
    """A conversation holds functions as the Realtime protocol writes them."""
    return {"type": "function", **tool.function.model_dump(exclude_unset=True)}


def _text(parts: tuple[Part, ...]) -> str:
    return " ".join(part.text for part in parts if isinstance(part, TextPart))


def _parts(message: Message, path: str, max_pixels: int, max_seconds: float) -> Iterator[Part]:
    if isinstance(message.content, str):
        yield TextPart(message.content)
        return
    for index, content in enumerate(message.content or []):
        param = f"{path}[{index}]"
        if content.type == "input_audio" and content.input_audio is not None:
            yield _audio_part(content.input_audio, param, max_seconds)
        elif content.type == "image_url" and content.image_url is not None:
            data = read_data_uri(content.image_url.url)
            yield ImagePart(read_image(data, max_pixels), detail=content.image_url.detail)
        elif content.type in ("text", "refusal"):
            yield TextPart(content.text)
        else:
            raise WireError(f"{param}.{content.type} is missing", code="missing_required_parameter", param=param)


def _audio_part(audio: InputAudio, param: str, max_seconds: float) -> AudioPart:
    message = f"{param}.input_audio.data is not base64"
    data = decode_base64(audio.data, param, message=message, code="invalid_value")
    return pcm_part(resample(decode_audio(data, audio.format, max_seconds=max_seconds), INPUT_SAMPLE_RATE).pcm)


class StopSequences:
    """Finds the sequences that a response ends before, and holds back text that may be the beginning of one."""

    def __init__(self, sequences: Collection[str]) -> None:
        self.found = False
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be sent, now that `text` was generated."""
        held = self._held + text
        positions = [index for sequence in self._sequences if (index := held.find(sequence)) >= 0]
        if positions:
            self.found, self._held = True, ""
            return held[: min(positions)]
        overlaps = (n for sequence in self._sequences for n in range(1, len(sequence)) if held.endswith(sequence[:n]))
        safe = len(held) - max(overlaps, default=0)
        self._held = held[safe:]
        return held[:safe]

    def flush(self) -> str:
        """The text that was held back, at the end of the response."""
        held, self._held = self._held, ""
        return held


class CompletionBuilder:
    """Builds a completion from what the engine generates: as a whole, or as chunks for a stream."""

    def __init__(self, completion_id: str, model: str, stops: Collection[str] = ()) -> None:
        self._common = {"id": completion_id, "created": int(time.time()), "model": model}
        self._text = ""
        self._stops = StopSequences(stops)
        self._calls: dict[str, Json] = {}
        self._summary = GenerationSummary()

    def start(self) -> Json:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def feed(self, generated: Chunk) -> Json | None:
        """The chunk to send for a piece of the engine's output; None where there is nothing to send yet."""
        match generated:
            case TextChunk(text):
                return self._add_text(self._stops.push(text))
            case ToolCallChunk():
                return self._chunk({"tool_calls": [self._add_call(generated)]})
            case GenerationSummary():
                self._summary = generated
        return None

    @property
    def stopped(self) -> bool:
        """Whether the response has come to one of its stop sequences."""
        return self._stops.found

    def finish(self, include_usage: bool) -> Iterator[Json]:
        """The last chunks."""
        if (held := self._add_text(self._stops.flush())) is not None:
            yield held
        yield self._chunk({}, self._finish_reason)
        if include_usage:
            usage = _usage(self._summary.usage)
            yield {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def to_json(self) -> Json:
        """The whole completion."""
        message: Json = {"role": "assistant", "content": self._text or None, "refusal": None}
        if self._calls:
            calls = [{key: call[key] for key in ("id", "type", "function")} for call in self._calls.values()]
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        usage = _usage(self._summary.usage)
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage}

    def _add_text(self, text: str) -> Json | None:
        self._text += text
        return self._chunk({"content": text}) if text else None

    def _add_call(self, generated: ToolCallChunk) -> Json:
        """The delta of a call; its id and the function's name are in the first one only."""
        delta: Json = {"index": len(self._calls), "function": {"arguments": generated.arguments}}
        if (call := self._calls.get(generated.call_id)) is None:
            delta |= {"id": generated.call_id, "type": "function"}
            delta["function"]["name"] = generated.name
            self._calls[generated.call_id] = {**delta, "function": dict(delta["function"])}
        else:
            delta["index"] = call["index"]
            call["function"]["arguments"] += generated.arguments
        return delta

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self._calls else _FINISH_REASONS.get(self._summary.finish, "stop")

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}


def _usage(usage: Usage) -> Json:
    prompt_tokens = usage.input_text + usage.input_audio + usage.input_image
    completion_tokens = usage.output_text + usage.output_audio
    total_tokens = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total_tokens}
