"""Choices that several dialects spell alike: how turns are detected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from echosight.errors import WireError
from echosight.options import AGGRESSIVENESS, TurnDetectionOptions

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
_KINDS = ("server_vad", "semantic_vad")

EAGERNESS: dict[str, tuple[int, int]] = {"low": (800, 8_000), "medium": (500, 4_000), "high": (300, 2_000)}
"""How long a silence ends a turn that sounds finished, and one that does not, in ms."""


def turn_options(
    data: Any,
    base: TurnDetectionOptions,
    param: str = "turn_detection",
    *,
    bridge: bool = False,
    echosight: bool = False,
) -> TurnDetectionOptions | None:
    """The Realtime protocol's ``turn_detection``; None (JSON null) means turns are committed by hand.

    `bridge` and `echosight`: with the words that these dialects add to it. Raises `WireError` naming the field at
    fault.
    """
    if data is None:
        return None
    if not isinstance(data, dict):
        raise WireError(f"{param} must be an object or null", code="invalid_type", param=param)
    kind = data.get("type", "server_vad")
    if kind not in _KINDS:
        supported = " and ".join(f"'{name}'" for name in _KINDS)
        raise WireError(
            f"Invalid value: '{kind}'. Supported values are: {supported}.", code="invalid_value", param=f"{param}.type"
        )
    ranges = _RANGES | (_BRIDGE_RANGES if bridge else {}) | (_ECHOSIGHT_RANGES if echosight else {})
    changes: dict[str, Any] = {"idle_timeout_ms": None, "max_endpointing_delay_ms": 0}
    if kind == "semantic_vad":
        changes |= _patience(data.get("eagerness", "auto"), f"{param}.eagerness")
    for key, value in data.items():
        if key in ranges:
            name, low, high = ranges[key]
            changes[name] = _number(value, low, high, f"{param}.{key}")
        elif bridge and key == "aggressiveness":
            changes["threshold"] = AGGRESSIVENESS[round(_number(value, 0, 3, f"{param}.{key}"))]
        elif key == "idle_timeout_ms":
            changes["idle_timeout_ms"] = None if value is None else _number(value, 100, 3_600_000, f"{param}.{key}")
        elif key in _SWITCHES:
            if not isinstance(value, bool):
                raise WireError(f"{param}.{key} must be true or false", code="invalid_type", param=f"{param}.{key}")
            changes[key] = value
        elif key not in ("type", "eagerness"):
            raise WireError(f"Unknown parameter: '{param}.{key}'.", code="unknown_parameter", param=f"{param}.{key}")
    for name, value in changes.items():
        if name.endswith("_ms") and value is not None:
            changes[name] = round(value)
    return replace(base, **changes)


def _patience(eagerness: Any, param: str) -> dict[str, int]:
    name = "medium" if eagerness in ("auto", None) else eagerness
    if not isinstance(name, str) or name not in EAGERNESS:
        supported = ", ".join(f"'{known}'" for known in (*EAGERNESS, "auto"))
        raise WireError(
            f"Invalid value: '{eagerness}'. Supported values are: {supported}.", code="invalid_value", param=param
        )
    silence_ms, patience_ms = EAGERNESS[name]
    return {"min_endpointing_delay_ms": silence_ms, "max_endpointing_delay_ms": patience_ms}


def _number(value: Any, low: float, high: float, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{param} must be a number", code="invalid_type", param=param)
    if not low <= value <= high:
        raise WireError(f"{param} must be between {low:g} and {high:g}", code="invalid_value", param=param)
    return value
