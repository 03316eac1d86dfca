"""The objects in session.update, response.create and conversation.item.create, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from echosight.errors import WireError
from echosight.wire.fields import Fault, first_fault
from echosight.wire.realtime.fields import invalid_value, missing_parameter

Tokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]


def _unknown_prompt(prompt: Any) -> None:
    if prompt is not None:
        raise PydanticCustomError("prompt", "Prompts are kept by the hosted service only; send instructions")


class StrictModel(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LenientModel(BaseModel):
    """Keeps unknown fields as they are: clients add some that do not matter to the server."""

    model_config = ConfigDict(extra="allow", strict=True)


class FunctionChoice(StrictModel):
    """The one function that the model must call."""

    type: Literal["function"]
    name: str


ToolChoice = Literal["auto", "none", "required"] | FunctionChoice


class RetentionRatio(LenientModel):
    type: Literal["retention_ratio"]
    retention_ratio: Annotated[float, Field(ge=0, le=1)]


class Pcm(StrictModel):
    type: Literal["audio/pcm"]
    rate: Literal[24_000] = 24_000


class G711(StrictModel):
    type: Literal["audio/pcmu", "audio/pcma"]


Format = Annotated[Pcm | G711, Field(discriminator="type")]


class Transcription(LenientModel):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class NoiseReduction(LenientModel):
    type: Literal["near_field", "far_field"] | None = None


class Tool(LenientModel):
    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class CustomVoice(LenientModel):
    id: str


class AudioInput(StrictModel):
    """`turn_detection` is validated in `echosight.wire.turn_detection`, for all dialects."""

    format: Format | None = None
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    turn_detection: dict[str, Any] | None = None


class AudioOutput(StrictModel):
    format: Format | None = None
    voice: str | CustomVoice | None = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None


class Audio(StrictModel):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class SharedFields(StrictModel):
    """The fields that sessions and single responses have in common."""

    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    prompt: Annotated[Any, AfterValidator(_unknown_prompt)] = None
    reasoning: Any = None


class Session(SharedFields):
    type: Literal["realtime", "transcription"]
    model: str | None = None
    audio: Audio | None = None
    include: list[str] | None = None
    tracing: Any = None
    truncation: Literal["auto", "disabled"] | RetentionRatio | None = None


class ResponseOutput(StrictModel):
    output: AudioOutput | None = None


class Response(SharedFields):
    audio: ResponseOutput | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class Content(LenientModel):
    """A part of a message; its type decides which fields it must have."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text", "audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None


class _Item(LenientModel):
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class Message(_Item):
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Content]


class FunctionCall(_Item):
    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class FunctionCallOutput(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str


class NewItem(StrictModel):
    item: Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]


Model = TypeVar("Model", bound=BaseModel)


MAX_DEPTH = 64
"""Maximum nesting: stored JSON is sent back to the client, and orjson refuses deeper structures."""


def check(model: type[Model], data: Any, path: str) -> Model:
    """`data` as `model`. Raises `WireError` in the service's own words that names the field at fault."""
    if not isinstance(data, dict):
        raise WireError(f"Invalid type for '{path}': expected an object.", code="invalid_type", param=path)
    if _exceeds_depth(data, MAX_DEPTH):
        raise WireError(f"Invalid value: more than {MAX_DEPTH} levels deep.", code="invalid_value", param=path or None)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _wire_error(first_fault(error, data), path) from error


def _exceeds_depth(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_exceeds_depth(child, levels - 1) for child in children if isinstance(child, dict | list))


def _wire_error(fault: Fault, path: str) -> WireError:
    param = ".".join(filter(None, [path, fault.path]))
    match fault.kind:
        case "extra_forbidden":
            return WireError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
        case "missing" | "union_tag_not_found":
            return missing_parameter(param)
        case kind if kind.endswith("_type") or kind == "is_instance_of":
            return WireError(f"Invalid type for '{param}': {fault.message}.", code="invalid_type", param=param)
        case _:
            return invalid_value(f"Invalid value for '{param}': {fault.message}.", param)
