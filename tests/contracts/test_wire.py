"""The contract of every wire: a new dialect joins by one line in `WIRES`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echosight import events as ev
from echosight.errors import InputError
from echosight.options import SessionOptions, apply_changes
from echosight.wire import Message, Wire
from echosight.wire.assistant import AssistantWire
from echosight.wire.echosight import EchoSightWire
from echosight.wire.echosight_messages import Limits
from echosight.wire.hotpin import Handshake, HotpinWire
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from echosight.wire.xiaozhi import Hello, XiaozhiWire
from tests.contracts.wire_strategies import (
    BRIDGE_UPDATE,
    CONFIGURING,
    CORRECT,
    EVENTS,
    SUBSCRIBE,
    events,
    messages,
    mistaken,
    to_text,
)

Json = dict[str, Any]


def echosight(*messages: Json) -> Wire:
    return _received(EchoSightWire("me", Limits(image_pixels=10_000, audio_seconds=10)), *messages)


def realtime(*messages: Json, beta: bool = False, **template: Any) -> Wire:
    offer = SessionTemplate(voices=("one", "two"), max_pixels=10_000, **template)
    return _received(RealtimeWire(offer, SessionOptions(), beta=beta), *messages)


def _received(wire: Wire, *messages: Json) -> Wire:
    for message in messages:
        list(wire.receive(to_text(message)))
    return wire


WIRES: dict[str, Callable[[], Wire]] = {
    "echosight": echosight,
    "echosight, binary with events": lambda: echosight(SUBSCRIBE),
    "realtime": realtime,
    "realtime beta": lambda: realtime(beta=True),
    "realtime bridge": lambda: realtime(BRIDGE_UPDATE),
    "realtime over webrtc": lambda: realtime(media_sample_rate=48_000),
    "realtime transcription": lambda: realtime(transcription_only=True),
    "assistant": AssistantWire,
    "hotpin": lambda: HotpinWire(Handshake("me")),
    "hotpin, vad": lambda: HotpinWire(Handshake("me", vad=True)),
    "hotpin, opus": lambda: HotpinWire(Handshake("me", format="opus")),
    "xiaozhi": lambda: XiaozhiWire(Hello(), "sess_1"),
    "xiaozhi, version 3": lambda: XiaozhiWire(Hello(3), "sess_1"),
}
SMALL = ("assistant", "hotpin", "hotpin, vad", "hotpin, opus", "xiaozhi", "xiaozhi, version 3")
"""Dialects of few messages, which frame or encode the speech that they send."""

every_wire = pytest.mark.parametrize("make", WIRES.values(), ids=WIRES)
every_name = pytest.mark.parametrize("name", WIRES)


def received(wire: Wire, message: Message) -> list[ev.Input] | InputError:
    """What the transport makes of a message: all its inputs, or the error."""
    try:
        return list(wire.receive(message))
    except InputError as error:
        return error


def sent(wire: Wire, event: ev.Output) -> list[Message]:
    return list(wire.send(event))


def without_ids(value: Any) -> str:
    """Ids that a wire makes up differ each time."""
    return re.sub(r"(item|call|event|conv)_[0-9a-f]{10,}", "id", repr(value))


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_the_strategy_covers_every_event() -> None:
    assert tuple(EVENTS) == ev.Output.__args__


@every_wire
@settings(deadline=None)
@given(message=messages)
def test_any_message_is_inputs_or_an_error_that_says_why(make: Callable[[], Wire], message: Message) -> None:
    result = received(make(), message)
    if isinstance(result, InputError):
        assert result.message
        assert result.code
    else:
        assert all(isinstance(event, ev.Input) for event in result)


def dialogue(wire: Wire, script: list[Message]) -> list[str]:
    """What a wire makes of messages, and how it shows the options that they change."""
    options = SessionOptions()
    log: list[str] = []
    for message in script:
        result = received(wire, message)
        log.append(without_ids(result))
        for event in [] if isinstance(result, InputError) else result:
            if isinstance(event, ev.UpdateOptions):
                options = apply_changes(options, event.changes)
                log.append(without_ids(sent(wire, ev.OptionsUpdated(options))))
    return log


@every_wire
@settings(deadline=None, max_examples=200)
@given(message=mistaken(CONFIGURING).map(to_text) | messages, later=st.sampled_from([CORRECT, CORRECT[::-1]]))
def test_a_refused_message_has_no_effect_on_later_ones(
    make: Callable[[], Wire], message: Message, later: list[Json]
) -> None:
    wire = make()
    if isinstance(received(wire, message), InputError):
        script: list[Message] = [b"\1\2", *map(to_text, later)]
        assert dialogue(wire, script) == dialogue(make(), script)


@every_name
@settings(deadline=None)
@given(script=st.lists(messages | events, max_size=12))
def test_events_are_sent_in_any_order_as_json_or_speech(name: str, script: list[Message | ev.Output]) -> None:
    wire = WIRES[name]()
    for step in script:
        if isinstance(step, str | bytes):
            received(wire, step)
            continue
        for message in sent(wire, step):
            if isinstance(message, str):
                assert isinstance(json.loads(message, parse_constant=refuse_constant), dict)
                message.encode()
            elif name in SMALL:
                assert message
                assert isinstance(step, ev.SpeechDelta | ev.ResponseEnded)
            else:
                assert isinstance(step, ev.SpeechDelta)
                assert message == step.chunk.pcm


@every_wire
@settings(deadline=None)
@given(script=st.lists(messages, min_size=1, max_size=4))
def test_the_clients_event_id_is_that_of_the_last_message(make: Callable[[], Wire], script: list[Message]) -> None:
    wire, fresh = make(), make()
    for message in script:
        received(wire, message)
    received(fresh, script[-1])
    assert wire.client_event_id == fresh.client_event_id


@every_name
def test_some_messages_of_each_dialect_are_accepted(name: str) -> None:
    accepted = [m for m in CORRECT if not isinstance(received(WIRES[name](), to_text(m)), InputError)]
    assert len(accepted) > (1 if name in SMALL else 8)
