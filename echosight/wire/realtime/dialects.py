"""GA, beta and bridge: the names that each has for the same things. All other files write GA; it is translated here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from echosight.errors import WireError
from echosight.wire.realtime.fields import invalid_value

Json = dict[str, Any]

FORMATS: dict[str, Json] = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
_FORMAT_NAMES = {audio_format["type"]: name for name, audio_format in FORMATS.items()}

_FLAT: dict[str, tuple[str, ...]] = {
    "modalities": ("output_modalities",),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "input_audio_format": ("audio", "input", "format"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "max_response_output_tokens": ("max_output_tokens",),
}
"""The paths of the flat fields of a session in the nested one."""

_SHARED = ("model", "instructions", "tools", "tool_choice", "tracing", "include")
_ONLY_RESPONSE = ("conversation", "input", "metadata", "max_output_tokens")

_BETA_NAMES: dict[str, str | None] = {
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,
    "input_audio_buffer.timeout_triggered": None,
    **{
        f"response.output_{ga}.{step}": f"response.{ga}.{step}"
        for ga in ("text", "audio", "audio_transcript")
        for step in ("delta", "done")
    },
}
_BRIDGE_NAMES: dict[str, str | None] = {
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,
    "input_audio_buffer.timeout_triggered": None,
    "response.content_part.added": None,
    "response.content_part.done": None,
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.output_text.delta",
    "response.output_audio_transcript.done": "response.output_text.done",
    "rate_limits.updated": None,
}
_BETA_CONTENT = {"output_text": "text", "output_audio": "audio"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the three.

    `flat`: sessions and responses have no ``audio`` object. `names` renames server events (None: not sent), `content`
    renames content types.
    """

    name: str
    flat: bool = False
    names: dict[str, str | None] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)

    def translate(self, event: Json) -> Iterator[Json]:
        """The events of this dialect for one of GA's."""
        name = self.names.get(event["type"], event["type"])
        if not self.flat:
            yield event
        elif name is not None:
            if self is BETA and name == "session.updated" and event["session"]["type"] == "transcription":
                name = f"transcription_{name}"
            if self is BRIDGE and name == "response.done" and event["response"]["status"] == "cancelled":
                yield {"type": "response.cancelled", "response": {"id": event["response"]["id"]}}
            yield self._flatten({**event, "type": name})

    def _flatten(self, event: Json) -> Json:
        if "session" in event:
            event["session"] = flatten_session(event["session"])
        if "response" in event:
            event["response"] = self._response(event["response"])
        if "item" in event:
            event["item"] = self._item(event["item"])
        match event:
            case {"type": "response.function_call_arguments.done"}:
                del event["name"]
            case {"type": "response.output_text.done", "transcript": text}:
                event["text"] = text
        return event

    def _response(self, response: Json) -> Json:
        output = response["audio"]["output"]
        flat = {key: value for key, value in response.items() if key not in ("audio", "output_modalities")}
        return flat | {
            "output": [self._item(item) for item in response["output"]],
            "modalities": _modalities(response["output_modalities"]),
            "voice": output["voice"],
            "output_audio_format": _FORMAT_NAMES[output["format"]["type"]],
        }

    def _item(self, item: Json) -> Json:
        if "content" not in item:
            return item
        content = [{**part, "type": self.content.get(part["type"], part["type"])} for part in item["content"]]
        return {**item, "content": content}


GA = Dialect("ga")
BETA = Dialect("beta", True, _BETA_NAMES, _BETA_CONTENT)
BRIDGE = Dialect("bridge", True, _BRIDGE_NAMES)


def is_flat(session: Any) -> bool:
    """Whether a session.update is of a flat dialect: it has flat fields, and no ``type``."""
    return isinstance(session, dict) and "type" not in session and not _FLAT.keys().isdisjoint(session)


def flatten_session(session: Json) -> Json:
    """A nested session as beta clients see it."""
    flat = {key: session[key] for key in ("id", "object", "expires_at", *_SHARED) if key in session}
    for name, path in _FLAT.items():
        value: Any = session
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        flat[name] = _write_field(name, value)
    return flat | {"temperature": session.get("temperature", 0.8)}


def _write_field(name: str, value: Any) -> Any:
    if name.endswith("_format"):
        return None if value is None else _FORMAT_NAMES[value["type"]]
    return _modalities(value) if name == "modalities" else value


def _modalities(output: list[str] | None) -> list[str]:
    return ["text"] if output in (["text"], None) else ["text", "audio"]


def unflatten(flat: Any, path: str) -> Json:
    """The flat fields of a session or response as GA nests them. Raises `WireError` for unknown fields.

    ``temperature`` stays at the top: GA has no such field.
    """
    if not isinstance(flat, dict):
        raise WireError(f"Invalid type for '{path}': expected an object.", code="invalid_type", param=path)
    known = (*_SHARED, *_ONLY_RESPONSE) if path == "response" else (*_SHARED, "client_secret")
    patch: Json = {}
    for name, value in flat.items():
        param = f"{path}.{name}"
        if name in _FLAT:
            _set_path(patch, _FLAT[name], _read_field(name, value, param))
        elif name == "temperature":
            patch[name] = _read_temperature(value, param)
        elif name in known:
            patch[name] = value
        else:
            raise WireError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    patch.pop("client_secret", None)
    return patch


def flatten_error(error: WireError) -> WireError:
    """An error that names a nested field as one that names the flat field that the client sent."""
    container, _, field = (error.param or "").partition(".")
    for name, path in _FLAT.items():
        nested_name = ".".join(path)
        if field == nested_name or field.startswith((f"{nested_name}.", f"{nested_name}[")):
            param = f"{container}.{name}{field[len(nested_name) :]}"
            return WireError(error.message.replace(f"'{error.param}'", f"'{param}'"), code=error.code, param=param)
    return error


def _set_path(patch: Json, path: tuple[str, ...], value: Any) -> None:
    *outer, last = path
    for step in outer:
        patch = patch.setdefault(step, {})
    patch[last] = value


def _read_field(name: str, value: Any, param: str) -> Any:
    if name.endswith("_format") and value is not None:
        if not isinstance(value, str) or value not in FORMATS:
            supported = ", ".join(f"'{known}'" for known in FORMATS)
            raise invalid_value(f"Invalid value: '{value}'. Supported values are: {supported}.", param)
        return FORMATS[value]
    if name == "turn_detection" and isinstance(value, dict) and value.get("type") == "none":
        return None
    if name == "modalities":
        if not isinstance(value, list) or not value or not set(map(str, value)) <= {"text", "audio"}:
            raise invalid_value(f"Invalid value for '{param}': expected ['text'] or ['text', 'audio'].", param)
        return ["audio"] if "audio" in value else ["text"]
    return value


def _read_temperature(value: Any, param: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise invalid_value(f"Invalid value for '{param}': expected a number between 0 and 2.", param)
    return float(value)
