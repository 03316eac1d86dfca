"""Bodies of the EchoSight dialect: messages whose content items are audio, images, text and options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from echosight import events as ev
from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.conversation import ImagePart, Item, Part, TextPart, pcm_part
from echosight.errors import InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges, SessionOptions
from echosight.vision.images import read_image
from echosight.wire.fields import decode_base64, first_fault, read_data_uri


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one message may hold."""

    image_pixels: int = 40_000_000
    audio_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a body: `parts` in the order in which they came, `stop` where it also stops the response.

    `empty`: there are no items at all. `blank`: there are items of audio or text, but not one sample and not one
    character in them.
    """

    parts: tuple[ev.Audio | ev.Image | ev.Text, ...] = ()
    stop: bool = False
    empty: bool = False
    blank: bool = False

    @property
    def has_audio(self) -> bool:
        return any(isinstance(p, ev.Audio) for p in self.parts)

    @property
    def is_typed(self) -> bool:
        """Whether it holds text and no audio: a whole turn by itself."""
        return not self.has_audio and any(isinstance(p, ev.Text) for p in self.parts)

    def to_events(self) -> Iterator[ev.Input]:
        """The inputs of a live stream. Images go in before the audio of the same body."""
        if self.stop:
            yield ev.Cancel()
        yield from sorted(self.parts, key=lambda p: isinstance(p, ev.Audio))
        if self.is_typed:
            yield ev.CommitInput()
            yield ev.CreateResponse(interrupt=True)

    def to_item(self) -> Item | None:
        """The content as one whole turn of the user; None where there are no parts."""
        chunks = [resample(p.chunk, INPUT_SAMPLE_RATE).pcm for p in self.parts if isinstance(p, ev.Audio)]
        pcm = b"".join(chunks)
        parts: list[Part] = [pcm_part(pcm)] if pcm else []
        for part in self.parts:
            match part:
                case ev.Image(frame):
                    parts.append(ImagePart(frame))
                case ev.Text(text):
                    parts.append(TextPart(text))
                case ev.Audio():
                    pass
        return Item("user", tuple(parts)) if parts else None


def read_content(body: Any, limits: Limits = Limits()) -> Content:
    """The content of ``{"messages": [{"role": "user", "content": [item, …]}]}``.

    Raises `InputError` that names the item at fault; then nothing of the body counts.
    """
    items = list(_items(body))
    parts: list[ev.Audio | ev.Image | ev.Text] = []
    seconds = 0.0
    stop = False
    for kind, item, path in items:
        match kind:
            case "input_audio":
                chunk = _read_audio(item, path, limits)
                seconds += chunk.seconds
                if seconds > limits.audio_seconds:
                    raise InputError(f"more than {limits.audio_seconds:g} s of audio", status=413, param=path)
                if chunk.pcm:
                    parts.append(ev.Audio(chunk))
            case "image_data" | "image" | "image_url":
                if data := _read_image_data(kind, item, path):
                    parts.append(ev.Image(read_image(data, limits.image_pixels)))
            case "text":
                if text := _require_str(item, "text", path):
                    parts.append(ev.Text(text))
            case "stop_response":
                stop = True
            case "none":
                pass
            case _:
                raise WireError(f"{path}.type: unknown content type '{kind}'", param=f"{path}.type")
    blank = not parts and any(kind in ("input_audio", "text") for kind, _, _ in items)
    return Content(tuple(parts), stop, not items, blank)


def read_items(entries: list[Any]) -> list[Item]:
    """Items of an earlier conversation: ``[{"role": "user" or "assistant", "text": …}]``. Raises `WireError`."""
    items: list[Item] = []
    for index, entry in enumerate(entries):
        match entry:
            case {"role": "user" | "assistant" as role, "text": str(text)}:
                items.append(Item(role, (TextPart(text),)))
            case _:
                path = f"items[{index}]"
                raise WireError(f"{path} must have a role, user or assistant, and a text", param=path)
    return items


def _items(body: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(type, item, path) of every content item of every message."""
    messages = _require(body, "messages", list, "body")
    for message_index, message in enumerate(messages):
        message_path = f"messages[{message_index}]"
        if _require(message, "role", str, message_path, default="user") != "user":
            raise WireError(f"{message_path}.role must be 'user'", param=f"{message_path}.role")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise WireError(f"{message_path}.content must be a list of items", param=f"{message_path}.content")
        for item_index, item in enumerate(content):
            path = f"{message_path}.content[{item_index}]"
            yield _require(item, "type", str, path), item, path


def _read_audio(item: dict[str, Any], path: str, limits: Limits) -> AudioChunk:
    audio = _require(item, "input_audio", dict, path)
    path += ".input_audio"
    data = decode_base64(_require_str(audio, "data", path), f"{path}.data")
    rate = audio.get("sample_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int)):
        raise WireError(f"{path}.sample_rate must be an integer", param=f"{path}.sample_rate")
    if not data:
        return AudioChunk(b"")
    audio_format = _require(audio, "format", str, path, default="wav")
    return decode_audio(data, audio_format, rate, max_seconds=limits.audio_seconds)


def _read_image_data(kind: str, item: dict[str, Any], path: str) -> bytes:
    value = item.get(kind)
    if kind == "image_url":
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str):
            raise WireError(f"{path}.image_url must hold a data URI", param=f"{path}.image_url")
        return read_data_uri(url)
    data = _require_str(_require(item, kind, dict, path), "data", f"{path}.{kind}")
    return read_data_uri(data) if data.startswith("data:") else decode_base64(data, f"{path}.{kind}.data")


def _require(value: Any, name: str, kind: type[Any], path: str, default: Any = None) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{path} must be an object", param=path)
    field = value.get(name, default)
    if not isinstance(field, kind):
        names = {"list": "a list", "str": "a string", "dict": "an object"}
        raise WireError(f"{path}: '{name}' must be {names[kind.__name__]}", param=f"{path}.{name}")
    return field


def _require_str(value: dict[str, Any], name: str, path: str) -> str:
    text: str = _require(value, name, str, path)
    return text


class CustomOptions(BaseModel):
    """The options item of /init_options.

    `use_audio_prompt` 0 uses the default voice. 1, 2 and 3 use the uploaded voice; the prompts say how.
    """

    model_config = ConfigDict(extra="ignore")

    hd_video: StrictBool = False
    use_audio_prompt: int = Field(0, ge=0, le=3, strict=True)
    vad_threshold: float = Field(0.5, ge=0, le=1, strict=True)
    voice_clone_prompt: str = ""
    assistant_prompt: str = ""


def read_options(body: Any, limits: Limits = Limits()) -> tuple[CustomOptions | None, AudioChunk | None]:
    """(options, voice sample) of an /init_options body.

    None where the body has none of them; an empty chunk stands for the default voice. Raises `InputError`.
    """
    options: CustomOptions | None = None
    sample: AudioChunk | None = None
    for kind, item, path in _items(body):
        match kind:
            case "input_audio":
                sample = _read_audio(item, path, limits)
            case "options":
                options = _read_custom_options(_require(item, "options", dict, path), f"{path}.options")
            case "none":
                pass
            case _:
                raise WireError(f"{path}.type: unknown content type '{kind}'", param=f"{path}.type")
    return options, sample


def _read_custom_options(data: dict[str, Any], path: str) -> CustomOptions:
    try:
        return CustomOptions.model_validate(data)
    except ValidationError as error:
        fault = first_fault(error, data)
        raise WireError(f"{path}.{fault.path}: {fault.message}", param=fault.path) from error


def option_changes(chosen: CustomOptions, options: SessionOptions) -> SessionChanges:
    """The changes that a client's choices make to a session with these options.

    Without prompts the instructions stay; where turns are committed by hand, the threshold has no meaning. Only
    `use_audio_prompt` 0 takes back an uploaded voice.
    """
    changes: SessionChanges = {"hd_video": chosen.hd_video}
    prompts = (chosen.voice_clone_prompt.strip(), chosen.assistant_prompt.strip())
    if instructions := "\n".join(prompt for prompt in prompts if prompt):
        changes["instructions"] = instructions
    if options.turn_detection is not None:
        changes["turn_detection"] = {"threshold": chosen.vad_threshold}
    if not chosen.use_audio_prompt:
        changes["response"] = {"voice_sample": None}
    return changes
