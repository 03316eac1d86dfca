"""``turn_detection``, which several dialects spell alike: the changes that a client makes, and the fields it sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

from echosight.errors import WireError
from echosight.options import AGGRESSIVENESS, TurnDetectionChanges, TurnDetectionOptions

Json = dict[str, Any]

_RANGES: dict[str, tuple[str, float, float]] = {
    "threshold": ("threshold", 0.0, 1.0),
    "prefix_padding_ms": ("prefix_padding_ms", 0, 5_000),
    "silence_duration_ms": ("min_endpointing_delay_ms", 32, 10_000),
}
_BRIDGE_RANGES: dict[str, tuple[str, float, float]] = {
    "start_ms": ("min_speech_ms", 20, 5_000),
    "end_ms": ("min_endpointing_delay_ms", 32, 10_000),
    "pad_ms": ("prefix_padding_ms", 0, 5_000),
    "max_ms": ("max_turn_ms", 100, 600_000),
}
_ECHOSIGHT_RANGES: dict[str, tuple[str, float, float]] = {
    "min_speech_ms": ("min_speech_ms", 32, 5_000),
    "pause_ms": ("speculation_delay_ms", 32, 10_000),
    "max_turn_ms": ("max_turn_ms", 1_000, 600_000),
}
_SWITCHES = ("create_response", "interrupt_response")
_TYPES = ("server_vad", "semantic_vad")

EAGERNESS: dict[str, tuple[int, int]] = {"low": (800, 8_000), "medium": (500, 4_000), "high": (300, 2_000)}
"""(silence if the text sounds complete, silence otherwise), ms."""

_OPTIONS = {
    **{field: option for field, (option, _, _) in (_RANGES | _BRIDGE_RANGES).items()},
    **{field: field for field in ("idle_timeout_ms", *_SWITCHES)},
}
"""Fields of the Realtime dialects that show an option as it is."""


def detection_changes(
    data: Any,
    param: str = "turn_detection",
    *,
    kind: str | None = None,
    bridge: bool = False,
    echosight: bool = False,
) -> TurnDetectionChanges:
    """The options that the Realtime protocol's ``turn_detection`` names, and no others.

    `kind` is the type of detection where `data` names none. `bridge` and `echosight` accept the fields that these
    dialects add. Raises `WireError` that names the field at fault.
    """
    if not isinstance(data, dict):
        raise WireError(f"{param} must be an object or null", code="invalid_type", param=param)
    kind = data.get("type", kind)
    if "type" in data and kind not in _TYPES:
        supported = " and ".join(f"'{name}'" for name in _TYPES)
        raise WireError(
            f"Invalid value: '{kind}'. Supported values are: {supported}.", code="invalid_value", param=f"{param}.type"
        )
    changes: Json = {}
    if kind == "semantic_vad" and "eagerness" in data:
        changes |= _endpointing_delays(data["eagerness"], f"{param}.eagerness")
    ranges = _RANGES | (_BRIDGE_RANGES if bridge else {}) | (_ECHOSIGHT_RANGES if echosight else {})
    for field, value in data.items():
        if field in ranges:
            option, low, high = ranges[field]
            number = _require_number(value, low, high, f"{param}.{field}")
            changes[option] = round(number) if option.endswith("_ms") else number
        elif bridge and field == "aggressiveness":
            changes["threshold"] = AGGRESSIVENESS[round(_require_number(value, 0, 3, f"{param}.{field}"))]
        elif field not in ("type", "eagerness"):
            changes[field] = _read_other(field, value, f"{param}.{field}")
    return cast(TurnDetectionChanges, changes)


def _read_other(field: str, value: Any, param: str) -> int | bool | None:
    """A field that has the name of its option."""
    if field == "idle_timeout_ms":
        return None if value is None else round(_require_number(value, 100, 3_600_000, param))
    if field not in _SWITCHES:
        raise WireError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if not isinstance(value, bool):
        raise WireError(f"{param} must be true or false", code="invalid_type", param=param)
    return value


def default_changes(names: Iterable[str], defaults: TurnDetectionOptions) -> TurnDetectionChanges:
    """Changes that set the options of these Realtime fields to `defaults`."""
    options = {_OPTIONS[name] for name in names if name in _OPTIONS}
    return cast(TurnDetectionChanges, {option: getattr(defaults, option) for option in options})


def all_changes(options: TurnDetectionOptions) -> TurnDetectionChanges:
    """Changes that set every option."""
    return cast(TurnDetectionChanges, asdict(options))


def detection_json(options: TurnDetectionOptions | None, chosen: Json) -> Json | None:
    """``turn_detection`` as Realtime clients see it: every option in force, by the fields of its type.

    `chosen` holds what the client has named since it chose the type; its fields are shown too. Every default is
    included, because one client sends its own cancel where a field is missing.
    """
    if options is None:
        return None
    fields = ["threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms", *_SWITCHES]
    shown: Json = {"type": chosen.get("type", "server_vad")}
    if shown["type"] == "semantic_vad":
        shown["eagerness"] = chosen.get("eagerness", "auto")
        fields = [*_SWITCHES]
    for field in dict.fromkeys([*fields, *chosen]):
        if field in _OPTIONS:
            shown[field] = getattr(options, _OPTIONS[field])
        elif field == "aggressiveness" and AGGRESSIVENESS[round(chosen[field])] != options.threshold:
            continue  # the client has set the threshold itself since then
        elif field not in shown:
            shown[field] = chosen[field]
    return shown


def _endpointing_delays(eagerness: Any, param: str) -> TurnDetectionChanges:
    name = "medium" if eagerness in ("auto", None) else eagerness
    if not isinstance(name, str) or name not in EAGERNESS:
        supported = ", ".join(f"'{known}'" for known in (*EAGERNESS, "auto"))
        raise WireError(
            f"Invalid value: '{eagerness}'. Supported values are: {supported}.", code="invalid_value", param=param
        )
    min_delay_ms, max_delay_ms = EAGERNESS[name]
    return {"min_endpointing_delay_ms": min_delay_ms, "max_endpointing_delay_ms": max_delay_ms}


def _require_number(value: Any, low: float, high: float, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{param} must be a number", code="invalid_type", param=param)
    if not low <= value <= high:
        raise WireError(f"{param} must be between {low:g} and {high:g}", code="invalid_value", param=param)
    return value
