"""Fields of client events, and the errors that name the field at fault."""

from __future__ import annotations

from typing import Any

from echosight import events as ev
from echosight.errors import WireError
from echosight.wire.fields import write_json

Json = dict[str, Any]

MAX_EVENT_ID_CHARS = 512
MAX_MS = 1 << 53


def invalid_value(message: str, param: str) -> WireError:
    """The error for a value of the right type that is not accepted."""
    return WireError(message, code="invalid_value", param=param)


def missing_parameter(param: str) -> WireError:
    """The error for a field that is absent or null."""
    return WireError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def error_event(error: ev.ErrorRaised) -> Json:
    """The ``error`` server event."""
    kind = "server_error" if error.code.startswith("engine") else "invalid_request_error"
    details = {"type": kind, "code": error.code, "message": error.message, "param": error.param}
    return {"type": "error", "error": details | {"event_id": error.client_event_id}}


def error_message(error: ev.ErrorRaised) -> str:
    """The error event for a client that is refused, and so has no session and no event ids."""
    return write_json({"event_id": "event_0", **error_event(error)})


def require(body: Json, name: str) -> Any:
    """Raises `WireError` where the field is absent or null, as all functions below do."""
    if body.get(name) is None:
        raise missing_parameter(name)
    return body[name]


def _require_type(body: Json, name: str, expected: str, *kinds: type[Any]) -> Any:
    value = require(body, name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise WireError(f"Invalid type for '{name}': expected {expected}.", code="invalid_type", param=name)
    return value


def require_str(body: Json, name: str) -> str:
    value: str = _require_type(body, name, "a string", str)
    return value


def require_ms(body: Json, name: str) -> int:
    """A time in ms, rounded to whole ones. Raises `WireError` also beyond `MAX_MS`, where floats are inexact."""
    value: float = _require_type(body, name, "a number", int, float)
    if abs(value) > MAX_MS:
        raise invalid_value(f"Invalid value for '{name}': no speech is that long.", name)
    return round(value)


def require_int(body: Json, name: str) -> int:
    value: int = _require_type(body, name, "an integer", int)
    return value


def require_object(body: Json, name: str) -> Json:
    value: Json = _require_type(body, name, "an object", dict)
    return value


def optional_str(body: Json, name: str) -> str | None:
    """A field that may be absent or null. Raises `WireError` for other types than strings."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise WireError(f"Invalid type for '{name}'.", code="invalid_type", param=name)
    return value


def client_event_id(body: Json) -> str | None:
    """The client's own id of its event, which errors repeat. Raises `WireError` where it is no string or too long."""
    if (event_id := body.get("event_id")) is None:
        return None
    if not isinstance(event_id, str):
        raise WireError("Invalid type for 'event_id': expected a string.", code="invalid_type", param="event_id")
    if len(event_id) > MAX_EVENT_ID_CHARS:
        raise WireError(
            f"'event_id' is longer than {MAX_EVENT_ID_CHARS} characters.",
            code="string_above_max_length",
            param="event_id",
        )
    return event_id
