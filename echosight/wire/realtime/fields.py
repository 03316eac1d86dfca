"""Fields of client events, and the errors that say what is wrong with them."""

from __future__ import annotations

from typing import Any

import orjson

from echosight import events as ev
from echosight.errors import WireError

Json = dict[str, Any]

MAX_REFERENCE_CHARS = 512
LONGEST_MS = 1 << 53


def invalid(message: str, param: str) -> WireError:
    """A value that makes no sense where it stands."""
    return WireError(message, code="invalid_value", param=param)


def error_event(failure: ev.ErrorRaised) -> Json:
    kind = "server_error" if failure.code.startswith("engine") else "invalid_request_error"
    error = {"type": kind, "code": failure.code, "message": failure.message, "param": failure.param}
    return {"type": "error", "error": error | {"event_id": failure.client_event_id}}


def error_message(failure: ev.ErrorRaised) -> str:
    """An error for a client that gets no session."""
    return orjson.dumps({"event_id": "event_0", **error_event(failure)}).decode()


def required(body: Json, name: str) -> Any:
    if body.get(name) is None:
        raise WireError(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    return body[name]


def _typed(body: Json, name: str, expected: str, *kinds: type[Any]) -> Any:
    value = required(body, name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise WireError(f"Invalid type for '{name}': expected {expected}.", code="invalid_type", param=name)
    return value


def text_of(body: Json, name: str) -> str:
    value: str = _typed(body, name, "a string", str)
    return value


def number_of(body: Json, name: str) -> float:
    value: float = _typed(body, name, "a number", int, float)
    return value


def ms_of(body: Json, name: str) -> int:
    """A time in whole ms. Fractions are rounded; what no recording lasts is refused."""
    value = number_of(body, name)
    if abs(value) > LONGEST_MS:
        raise invalid(f"Invalid value for '{name}': no speech is that long.", name)
    return round(value)


def index_of(body: Json, name: str) -> int:
    value: int = _typed(body, name, "an integer", int)
    return value


def reference_of(body: Json) -> str | None:
    """The client's own id of its event, which errors echo."""
    if (reference := body.get("event_id")) is None:
        return None
    if not isinstance(reference, str):
        raise WireError("Invalid type for 'event_id': expected a string.", code="invalid_type", param="event_id")
    if len(reference) > MAX_REFERENCE_CHARS:
        raise WireError(
            f"'event_id' is longer than {MAX_REFERENCE_CHARS} characters.",
            code="string_above_max_length",
            param="event_id",
        )
    return reference


def object_of(body: Json, name: str) -> Json:
    value: Json = _typed(body, name, "an object", dict)
    return value
