"""What clients may send inside session.update, response.create and conversation.item.create, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from echosight.errors import WireError

Tokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]


def _unknown_prompt(prompt: Any) -> None:
    if prompt is not None:
        raise PydanticCustomError("prompt", "Prompts are kept by the hosted service only; send instructions")


class Closed(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Open(BaseModel):
    """Fields that clients add, and nothing here depends on, are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


class Chosen(Closed):
    """The one function that is to be called."""

    type: Literal["function"]
    name: str


ToolChoice = Literal["auto", "none", "required"] | Chosen


class RetentionRatio(Open):
    type: Literal["retention_ratio"]
    retention_ratio: Annotated[float, Field(ge=0, le=1)]


class Pcm(Closed):
    type: Literal["audio/pcm"]
    rate: Literal[24_000] = 24_000


class G711(Closed):
    type: Literal["audio/pcmu", "audio/pcma"]


Format = Annotated[Pcm | G711, Field(discriminator="type")]


class Transcription(Open):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class NoiseReduction(Open):
    type: Literal["near_field", "far_field"] | None = None


class Tool(Open):
    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class CustomVoice(Open):
    id: str


class AudioInput(Closed):
    """`turn_detection` is checked where it is understood: in `echosight.wire.turn_detection`."""

    format: Format | None = None
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    turn_detection: dict[str, Any] | None = None


class AudioOutput(Closed):
    format: Format | None = None
    voice: str | CustomVoice | None = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None


class Audio(Closed):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class Prompted(Closed):
    """What sessions and single responses have in common."""

    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    prompt: Annotated[Any, AfterValidator(_unknown_prompt)] = None
    reasoning: Any = None


class Session(Prompted):
    type: Literal["realtime", "transcription"]
    model: str | None = None
    audio: Audio | None = None
    include: list[str] | None = None
    tracing: Any = None
    truncation: Literal["auto", "disabled"] | RetentionRatio | None = None


class ResponseOutput(Closed):
    output: AudioOutput | None = None


class Response(Prompted):
    audio: ResponseOutput | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class Content(Open):
    """A part of a message; which fields it needs depends on its type."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text", "audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None


class _Item(Open):
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


class NewItem(Closed):
    item: Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]


Model = TypeVar("Model", bound=BaseModel)


DEEPEST = 64
"""Levels of objects and lists: what is kept must be written again, and no writer of JSON goes down without end."""


def check(model: type[Model], data: Any, place: str) -> Model:
    """`data` as `model`. Raises `WireError` in the service's own words, naming the field at fault."""
    if not isinstance(data, dict):
        raise WireError(f"Invalid type for '{place}': expected an object.", code="invalid_type", param=place)
    if _deeper(data, DEEPEST):
        raise WireError(f"Invalid value: more than {DEEPEST} levels deep.", code="invalid_value", param=place or None)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(filter(None, [place, *_path(data, first["loc"], first["type"])]))
        raise _refusal(first["type"], first["msg"], param) from error


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(v, levels - 1) for v in inner if isinstance(v, dict | list))


def _path(data: Any, loc: tuple[int | str, ...], kind: str) -> list[str]:
    """The place of a mistake without the tags that pydantic puts in for the members of unions."""
    path: list[str] = []
    for at, step in enumerate(loc):
        last = at == len(loc) - 1
        if isinstance(data, dict) and (step in data or (last and kind == "missing")):
            path.append(str(step))
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            path[-1] += f"[{step}]"
            data = data[step]
    if kind.startswith("union_tag"):
        path.append("type")
    return path


def _refusal(kind: str, message: str, param: str) -> WireError:
    match kind:
        case "extra_forbidden":
            return WireError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
        case "missing" | "union_tag_not_found":
            return WireError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
        case _ if kind.endswith("_type") or kind == "is_instance_of":
            return WireError(f"Invalid type for '{param}': {message}.", code="invalid_type", param=param)
        case _:
            return WireError(f"Invalid value for '{param}': {message}.", code="invalid_value", param=param)
