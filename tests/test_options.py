"""Clients change single fields; the session's one copy of the options takes them in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from echosight.options import (
    GenerateChanges,
    GenerateOptions,
    SessionChanges,
    SessionOptions,
    TurnDetectionChanges,
    TurnDetectionOptions,
    apply_changes,
)


def test_changes_leave_alone_what_they_do_not_name() -> None:
    options = SessionOptions(instructions="Be kind.", turn_detection=TurnDetectionOptions(threshold=0.8))
    changed = apply_changes(options, {"turn_detection": {"min_speech_ms": 96}, "response": {"voice": "one"}})
    assert changed.instructions == "Be kind."
    assert changed.turn_detection == TurnDetectionOptions(threshold=0.8, min_speech_ms=96)
    assert changed.response == GenerateOptions(voice="one")


def test_detection_comes_back_as_the_server_has_it() -> None:
    by_hand = apply_changes(SessionOptions(), {"turn_detection": None})
    assert by_hand.turn_detection is None
    again = apply_changes(by_hand, {"turn_detection": {"threshold": 0.9}}, TurnDetectionOptions(max_turn_ms=7))
    assert again.turn_detection == TurnDetectionOptions(threshold=0.9, max_turn_ms=7)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (SessionChanges, SessionOptions),
        (GenerateChanges, GenerateOptions),
        (TurnDetectionChanges, TurnDetectionOptions),
    ],
)
def test_every_option_can_be_changed(changes: type[Any], options: type[Any]) -> None:
    assert get_type_hints(changes).keys() == {field.name for field in fields(options)}
