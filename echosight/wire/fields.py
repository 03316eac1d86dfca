"""Fields of messages that every wire reads and writes alike: JSON, base64, data URIs, and errors that name a field."""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from pydantic import ValidationError

from echosight.audio.resampling import MAX_HZ, MIN_HZ
from echosight.errors import InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, pcm_ms

Json = dict[str, Any]

MAX_SESSION_ID_CHARS = 256


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `WireError` ``invalid_json``."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WireError("Invalid JSON", code="invalid_json") from error


def write_json(value: Mapping[str, Any]) -> str:
    """A message as JSON text.

    A model may stream one half of a UTF-16 surrogate pair, and orjson refuses such text: it is sent escaped, and the
    client's string is whole again once it appends the other half.
    """
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def optional_field(body: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The value of a field; None where it is missing or null. Raises `WireError` where it is of another type."""
    value = body.get(name)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise WireError(f"{name} must be of type {kind.__name__}", code="invalid_type", param=name)
    return value


def optional_rate(body: Mapping[str, Any], name: str) -> int | None:
    """The sample rate in Hz that a field names; None where it is missing or null. Raises `WireError`."""
    rate: int | None = optional_field(body, name, int)
    if rate is not None and not MIN_HZ <= rate <= MAX_HZ:
        raise WireError(f"{name} must be between {MIN_HZ} and {MAX_HZ}", param=name)
    return rate


def check_session_id(session_id: Any) -> str:
    """A session id that a client chose. Raises `WireError` where it is no string of a usable length."""
    if not isinstance(session_id, str) or not 1 <= len(session_id) <= MAX_SESSION_ID_CHARS:
        raise WireError(f"session_id must be a string of 1 to {MAX_SESSION_ID_CHARS} characters", param="session_id")
    return session_id


class WholeSamples:
    """Cuts a stream of PCM16 that may be split anywhere into whole samples: an odd byte waits for its other half."""

    def __init__(self) -> None:
        self._odd_byte = b""

    def push(self, data: bytes) -> bytes:
        """The whole samples that the data completes."""
        data = self._odd_byte + data
        pcm = data[: len(data) // 2 * 2]
        self._odd_byte = data[len(pcm) :]
        return pcm

    def clear(self) -> None:
        """Drop the odd byte: the stream ends here."""
        self._odd_byte = b""


def decode_base64(text: str, param: str, *, message: str | None = None, code: str | None = None) -> bytes:
    """The bytes of standard base64 without line breaks.

    Raises `WireError` that names `param`; `message` and `code` are the dialect's own, where it has some.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or a character outside ASCII
        raise WireError(message or f"{param} is not base64", code=code, param=param) from error


def read_data_uri(uri: str) -> bytes:
    """The bytes of a ``data:`` URI (RFC 2397), base64 or percent-encoded.

    Raises `InputError` ``invalid_image`` for every other URI: the server fetches nothing.
    """
    header, comma, body = uri.partition(",")
    if not comma or header[:5].lower() != "data:":
        raise InputError("Pictures come as data URIs; addresses are not fetched", code="invalid_image")
    data = unquote_to_bytes(body)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return binascii.a2b_base64(b"".join(data.split()), strict_mode=True)
    except binascii.Error as error:
        raise InputError("Data URI is not base64", code="invalid_image") from error


def samples_to_ms(position: int) -> int:
    """A sample position of the user's audio in whole ms, rounded down."""
    return pcm_ms(2 * position, INPUT_SAMPLE_RATE)


class Fault(NamedTuple):
    """What pydantic found wrong: its error type, its message, and the field's path, such as ``tools[0].name``."""

    kind: str
    message: str
    path: str


def first_fault(error: ValidationError, data: Any) -> Fault:
    """The first mistake in `data`, the value that was validated."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return Fault(first["type"], first["msg"], ".".join(_path(data, first["loc"], first["type"])))


def _path(data: Any, loc: tuple[int | str, ...], kind: str) -> list[str]:
    """The steps of `loc` that are in `data`: pydantic also puts in the tags and types of a union's members."""
    path: list[str] = []
    for index, step in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(data, dict) and (step in data or (is_last and kind == "missing")):
            path.append(str(step))
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            path = [*path[:-1], f"{path[-1] if path else ''}[{step}]"]
            data = data[step]
    if kind.startswith("union_tag"):
        path.append("type")
    return path
