"""Choices that several dialects spell alike: how turns are detected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from echosight.errors import WireError
from echosight.options import TurnOptions

_RANGES: dict[str, tuple[str, float, float]] = {
    "threshold": ("threshold", 0.0, 1.0),
    "prefix_padding_ms": ("prefix_padding_ms", 0, 5_000),
    "silence_duration_ms": ("silence_ms", 32, 10_000),
}
_SWITCHES = ("create_response", "interrupt_response")
_IGNORED = ("type", "eagerness", "idle_timeout_ms")


def turn_options(data: Any, base: TurnOptions, param: str = "turn_detection") -> TurnOptions | None:
    """The Realtime protocol's ``turn_detection``; None (JSON null) means turns are committed by hand.

    Raises `WireError` naming the field at fault.
    """
    if data is None:
        return None
    if not isinstance(data, dict):
        raise WireError(f"{param} must be an object or null", code="invalid_type", param=param)
    changes: dict[str, Any] = {}
    for key, value in data.items():
        if key in _RANGES:
            name, low, high = _RANGES[key]
            changes[name] = _number(value, low, high, f"{param}.{key}")
        elif key in _SWITCHES:
            if not isinstance(value, bool):
                raise WireError(f"{param}.{key} must be true or false", code="invalid_type", param=f"{param}.{key}")
            changes[key] = value
        elif key not in _IGNORED:
            raise WireError(f"Unknown parameter: '{param}.{key}'.", code="unknown_parameter", param=f"{param}.{key}")
    for name, value in changes.items():
        if name.endswith("_ms"):
            changes[name] = round(value)
    return replace(base, **changes)


def _number(value: Any, low: float, high: float, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{param} must be a number", code="invalid_type", param=param)
    if not low <= value <= high:
        raise WireError(f"{param} must be between {low:g} and {high:g}", param=param)
    return value
