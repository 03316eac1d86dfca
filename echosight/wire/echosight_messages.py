"""Bodies of the EchoSight dialect: messages whose content items are sound, pictures, text and options."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from echosight import events as ev
from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.conversation import ImagePart, Item, Part, TextPart, pcm_part
from echosight.errors import InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionOptions
from echosight.vision.images import read_data_uri, read_image


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one message may hold."""

    image_pixels: int = 40_000_000
    audio_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Content:
    """What a body says. `parts` in the order they came; `stop` where it asks to stop the answer.

    `empty` has no items at all; `hollow` has sound or text without a sample or a letter, and nothing else.
    """

    parts: tuple[ev.Audio | ev.Image | ev.Text, ...] = ()
    stop: bool = False
    empty: bool = False
    hollow: bool = False

    @property
    def has_audio(self) -> bool:
        return any(isinstance(p, ev.Audio) for p in self.parts)

    @property
    def typed(self) -> bool:
        """Text without speech: a whole turn by itself."""
        return not self.has_audio and any(isinstance(p, ev.Text) for p in self.parts)

    def live(self) -> Iterator[ev.Input]:
        """As pieces of a live stream. Pictures go in before the sound that they came with."""
        if self.stop:
            yield ev.Cancel()
        yield from sorted(self.parts, key=lambda p: isinstance(p, ev.Audio))
        if self.typed:
            yield ev.CommitInput()
            yield ev.CreateResponse(interrupt=True)

    def item(self) -> Item | None:
        """As one whole turn of the user; None where it holds nothing."""
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


def read_json(body: str | bytes) -> Any:
    """Raises `WireError` ``Invalid JSON``."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WireError("Invalid JSON", code="invalid_json") from error


def read_content(body: Any, limits: Limits = Limits()) -> Content:
    """The content of ``{"messages": [{"role": "user", "content": [item, …]}]}``.

    Raises `InputError` with the reason; then nothing of the body counts.
    """
    items = list(_items(body))
    parts: list[ev.Audio | ev.Image | ev.Text] = []
    seconds = 0.0
    stop = False
    for kind, item, where in items:
        match kind:
            case "input_audio":
                chunk = _audio(item, where, limits)
                seconds += chunk.seconds
                if seconds > limits.audio_seconds:
                    raise InputError(f"more than {limits.audio_seconds:g} s of audio", status=413, param=where)
                if chunk.pcm:
                    parts.append(ev.Audio(chunk))
            case "image_data" | "image" | "image_url":
                if data := _picture(kind, item, where):
                    parts.append(ev.Image(read_image(data, limits.image_pixels)))
            case "text":
                if text := _string(item, "text", where):
                    parts.append(ev.Text(text))
            case "stop_response":
                stop = True
            case "none":
                pass
            case _:
                raise WireError(f"{where}.type: unknown content type '{kind}'", param=f"{where}.type")
    hollow = not parts and any(kind in ("input_audio", "text") for kind, _, _ in items)
    return Content(tuple(parts), stop, not items, hollow)


def read_items(said: list[Any]) -> list[Item]:
    """What was said before, as ``[{"role": "user" or "assistant", "text": …}]``. Raises `WireError`."""
    items: list[Item] = []
    for i, entry in enumerate(said):
        match entry:
            case {"role": "user" | "assistant" as role, "text": str(text)}:
                items.append(Item(role, (TextPart(text),)))
            case _:
                raise WireError(f"items[{i}] must have a role, user or assistant, and a text", param=f"items[{i}]")
    return items


def _items(body: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(type, item, place) of every content item of every message."""
    messages = _field(body, "messages", list, "body")
    for m, message in enumerate(messages):
        place = f"messages[{m}]"
        if _field(message, "role", str, place, default="user") != "user":
            raise WireError(f"{place}.role must be 'user'", param=f"{place}.role")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise WireError(f"{place}.content must be a list of items", param=f"{place}.content")
        for c, item in enumerate(content):
            where = f"{place}.content[{c}]"
            yield _field(item, "type", str, where), item, where


def _audio(item: dict[str, Any], where: str, limits: Limits) -> AudioChunk:
    audio = _field(item, "input_audio", dict, where)
    where += ".input_audio"
    data = _base64(_string(audio, "data", where), f"{where}.data")
    rate = audio.get("sample_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int)):
        raise WireError(f"{where}.sample_rate must be an integer", param=f"{where}.sample_rate")
    if not data:
        return AudioChunk(b"")
    format_ = _field(audio, "format", str, where, default="wav")
    return decode_audio(data, format_, rate, max_seconds=limits.audio_seconds)


def _picture(kind: str, item: dict[str, Any], where: str) -> bytes:
    value = item.get(kind)
    if kind == "image_url":
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str):
            raise WireError(f"{where}.image_url must hold a data URI", param=f"{where}.image_url")
        return read_data_uri(url)
    data = _string(_field(item, kind, dict, where), "data", f"{where}.{kind}")
    return read_data_uri(data) if data.startswith("data:") else _base64(data, f"{where}.{kind}.data")


def _field(value: Any, name: str, kind: type[Any], where: str, default: Any = None) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object", param=where)
    found = value.get(name, default)
    if not isinstance(found, kind):
        names = {"list": "a list", "str": "a string", "dict": "an object"}
        raise WireError(f"{where}: '{name}' must be {names[kind.__name__]}", param=f"{where}.{name}")
    return found


def _string(value: dict[str, Any], name: str, where: str) -> str:
    text: str = _field(value, name, str, where)
    return text


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{where} is not base64", param=where) from error


class CustomOptions(BaseModel):
    """The options item of /init_options. `use_audio_prompt`: 0 plain, 1 the voice sample speaks as assistant,
    2 and 3 as the prompts say; in all but 0 an uploaded voice is used."""

    model_config = ConfigDict(extra="ignore")

    hd_video: StrictBool = False
    use_audio_prompt: int = Field(0, ge=0, le=3, strict=True)
    vad_threshold: float = Field(0.5, ge=0, le=1, strict=True)
    voice_clone_prompt: str = ""
    assistant_prompt: str = ""


def read_options(body: Any, limits: Limits = Limits()) -> tuple[CustomOptions | None, AudioChunk | None]:
    """(options, voice to imitate) of an /init_options body; None where it names none, an empty chunk for the default.

    Raises `InputError` with the reason.
    """
    options: CustomOptions | None = None
    sample: AudioChunk | None = None
    for kind, item, where in _items(body):
        match kind:
            case "input_audio":
                sample = _audio(item, where, limits)
            case "options":
                try:
                    options = CustomOptions.model_validate(_field(item, "options", dict, where))
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    field = ".".join(map(str, first["loc"]))
                    raise WireError(f"{where}.options.{field}: {first['msg']}", param=field) from error
            case "none":
                pass
            case _:
                raise WireError(f"{where}.type: unknown content type '{kind}'", param=f"{where}.type")
    return options, sample


def apply_options(options: SessionOptions, chosen: CustomOptions) -> SessionOptions:
    """The session's options with a client's choices in them."""
    prompts = (chosen.voice_clone_prompt.strip(), chosen.assistant_prompt.strip())
    sample = options.response.voice_sample if chosen.use_audio_prompt else None
    return replace(
        options,
        instructions="\n".join(p for p in prompts if p) or options.instructions,
        turn_detection=options.turn_detection and replace(options.turn_detection, threshold=chosen.vad_threshold),
        response=replace(options.response, voice_sample=sample),
        hd_video=chosen.hd_video,
    )
