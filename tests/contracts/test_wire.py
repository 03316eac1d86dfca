"""The contract of every wire: a new dialect joins by one line in `WIRES`."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from echosight import events as ev
from echosight.audio.formats import wav_bytes
from echosight.conversation import AudioPart, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.errors import InputError
from echosight.media import AudioChunk, ImageFrame, Transcript, Word
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions, apply_changes
from echosight.wire import Message, Wire
from echosight.wire.echosight import EchoSightWire
from echosight.wire.echosight_messages import Limits
from echosight.wire.realtime import RealtimeWire, SessionTemplate

Json = dict[str, Any]

BRIDGE_UPDATE: Json = {"type": "session.update", "session": {"voice": "one", "modalities": ["text", "audio"]}}
SUBSCRIBE: Json = {"type": "subscribe", "sample_rate": 8_000, "audio": "binary", "events": True}


def echosight(*messages: Json) -> Wire:
    return _received(EchoSightWire("me", Limits(image_pixels=10_000, audio_seconds=10)), *messages)


def realtime(*messages: Json, beta: bool = False, **template: Any) -> Wire:
    offer = SessionTemplate(voices=("one", "two"), max_pixels=10_000, **template)
    return _received(RealtimeWire(offer, SessionOptions(), beta=beta), *messages)


def _received(wire: Wire, *messages: Json) -> Wire:
    for message in messages:
        list(wire.receive(_text(message)))
    return wire


WIRES: dict[str, Callable[[], Wire]] = {
    "echosight": echosight,
    "echosight, binary with events": lambda: echosight(SUBSCRIBE),
    "realtime": realtime,
    "realtime beta": lambda: realtime(beta=True),
    "realtime bridge": lambda: realtime(BRIDGE_UPDATE),
    "realtime over webrtc": lambda: realtime(media_sample_rate=48_000),
    "realtime transcription": lambda: realtime(transcription_only=True),
}

every_wire = pytest.mark.parametrize("make", WIRES.values(), ids=WIRES)

# --- messages of clients: correct ones of all dialects, the same with a mistake, and noise ------------


def _text(message: Any) -> str:
    return orjson.dumps(message).decode()


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


PNG = base64.b64encode(_png()).decode()
WAV = base64.b64encode(wav_bytes(AudioChunk(b"\1\2" * 160))).decode()
PCM = base64.b64encode(b"\1\2" * 240).decode()
DETECTION = {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 400, "idle_timeout_ms": None}
USER_MESSAGE = {
    "type": "message",
    "role": "user",
    "content": [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
        {"type": "input_audio", "audio": PCM, "transcript": "hear"},
    ],
}
BODY = [
    {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
    {"type": "image_data", "image_data": {"data": PNG}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    {"type": "text", "text": "hello"},
]

CORRECT: list[Json] = [
    SUBSCRIBE,
    {"type": "configure", "turn_detection": {**DETECTION, "pause_ms": 96}, "voice": "one", "record": False},
    {"type": "configure", "turn_detection": None, "instructions": "be kind", "language": "en", "levels": True},
    *({"type": kind} for kind in ("stop", "commit", "clear", "reset")),
    {"type": "restore", "items": [{"role": "user", "text": "I am Ada"}, {"role": "assistant", "text": "Hello"}]},
    {"type": "played", "item_id": "item_1", "audio_ms": 20},
    {"messages": [{"role": "user", "content": BODY}]},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": [{"type": "stop_response"}]}]},
    BRIDGE_UPDATE,
    {"type": "session.update", "session": {"turn_detection": {"type": "server_vad", "aggressiveness": 3, "max_ms": 9}}},
    {"type": "session.update", "session": {"input_audio_format": "g711_ulaw", "temperature": 0.7}},
    {"type": "session.update", "session": {"type": "realtime", "instructions": "be brief", "tools": [{"name": "f"}]}},
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": DETECTION}}}},
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "audio": {
                "input": {"format": {"type": "audio/pcmu"}, "transcription": {"language": "de"}},
                "output": {"format": {"type": "audio/pcma"}, "voice": {"id": "two"}, "speed": 1.25},
            },
        },
    },
    {"type": "input_audio_buffer.append", "audio": PCM},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": USER_MESSAGE, "previous_item_id": "root"},
    {"type": "conversation.item.create", "item": {"type": "function_call", "name": "f", "arguments": "{}"}},
    {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "c", "output": "1"}},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 20},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "response.create"},
    {"type": "response.create", "response": {"input": [USER_MESSAGE], "conversation": "none", "metadata": {"a": "b"}}},
    {"type": "response.create", "response": {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}},
    {"type": "response.create", "response": {"voice": "two", "output_audio_format": "g711_alaw"}},
    {"type": "response.cancel", "response_id": "resp_1"},
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


CONFIGURING = [m for m in CORRECT if m.get("type") in ("subscribe", "configure", "session.update")]


@st.composite
def mistaken(draw: st.DrawFn, correct: list[Json] = CORRECT) -> Any:
    """A correct message with one value replaced, removed or added."""
    message: Any = orjson.loads(orjson.dumps(draw(st.sampled_from(correct))))
    container = message
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if container[key] and isinstance(container[key], dict | list) and draw(st.integers(0, 4)):
            container = container[key]
            continue
        if draw(st.integers(0, 2)):
            container[key] = draw(json_values)
        else:
            del container[key]
        break
    if isinstance(container, dict) and draw(st.booleans()):
        container[draw(st.sampled_from(["event_id", "type", "session", "response", "x"]))] = draw(json_values)
    return message


def with_event_id(message: Json) -> Json:
    return {**message, "event_id": "mine"}


messages: st.SearchStrategy[Message] = (
    st.sampled_from([*CORRECT, *map(with_event_id, CORRECT)]).map(_text)
    | mistaken().map(_text)
    | json_values.map(_text)
    | st.text(max_size=40)
    | st.binary(max_size=40)
)

# --- events of sessions ---------------------------------------------------------------------------

item_ids, response_ids = st.sampled_from(["item_1", "item_2"]), st.sampled_from(["resp_1", "resp_2"])
texts = st.text(st.characters(), max_size=5)
"""Surrogates included: models may stream half of a pair."""
chunks = st.builds(
    AudioChunk, st.integers(0, 300).map(lambda samples: b"\1\2" * samples), st.sampled_from([8_000, 16_000, 24_000])
)
words = st.builds(Word, st.integers(0, 9), st.integers(0, 9))
parts = (
    st.builds(TextPart, texts)
    | st.builds(AudioPart, st.none() | chunks.map(lambda chunk: chunk.pcm), transcript=st.none() | texts)
    | st.builds(ImagePart, st.builds(ImageFrame, st.binary(max_size=5), st.just("image/png"), st.just(1), st.just(1)))
    | st.builds(ToolCall, texts, texts, texts)
    | st.builds(ToolResult, texts, texts)
)
items = st.builds(
    Item,
    st.sampled_from(["user", "assistant", "system", "tool"]),
    st.lists(parts, max_size=3).map(tuple),
    item_ids,
    status=st.sampled_from(["in_progress", "completed", "incomplete"]),
)
generate_options = st.builds(
    GenerateOptions,
    speech=st.booleans(),
    voice=st.none() | texts,
    max_output_tokens=st.none() | st.integers(1, 9),
    temperature=st.none() | st.just(0.5),
    tool_choice=st.just("auto") | st.just({"type": "function", "name": "f"}),
    output_format=st.sampled_from([None, "audio/pcm", "audio/pcmu", "audio/pcma"]),
)
session_options = st.builds(
    SessionOptions,
    instructions=texts,
    turn_detection=st.none() | st.builds(TurnDetectionOptions, threshold=st.floats(0, 1)),
    response=generate_options,
)
previous_ids = st.none() | item_ids
positions = st.integers(0, 2**70)
floats = st.none() | st.floats(allow_nan=False, allow_infinity=False)

EVENTS: dict[type[Any], st.SearchStrategy[Any]] = {
    ev.SessionOpened: st.builds(ev.SessionOpened, texts, session_options),
    ev.OptionsUpdated: st.builds(ev.OptionsUpdated, session_options),
    ev.Synced: st.builds(ev.Synced, texts, st.booleans()),
    ev.SpeechStarted: st.builds(ev.SpeechStarted, item_ids, positions),
    ev.SpeechStopped: st.builds(ev.SpeechStopped, item_ids, positions),
    ev.IdleTimedOut: st.builds(ev.IdleTimedOut, item_ids, positions, positions),
    ev.InputCleared: st.builds(ev.InputCleared),
    ev.InputCommitted: st.builds(ev.InputCommitted, item_ids, previous_ids),
    ev.TranscriptUpdated: st.builds(
        ev.TranscriptUpdated, item_ids, st.builds(Transcript, texts, final=st.booleans()), st.integers(0, 9)
    ),
    ev.TranscriptionFailed: st.builds(ev.TranscriptionFailed, item_ids, texts, texts),
    ev.VadLevel: st.builds(ev.VadLevel, positions, st.floats(0, 1)),
    ev.ItemAdded: st.builds(ev.ItemAdded, items, previous_ids, st.none() | response_ids),
    ev.ItemDone: st.builds(ev.ItemDone, items, previous_ids, st.none() | response_ids),
    ev.ItemRemoved: st.builds(ev.ItemRemoved, item_ids),
    ev.ItemRetrieved: st.builds(ev.ItemRetrieved, items),
    ev.ItemTruncated: st.builds(ev.ItemTruncated, item_ids, st.integers(0, 9), texts, st.booleans()),
    ev.ResponseStarted: st.builds(
        ev.ResponseStarted,
        response_ids,
        generate_options,
        st.none() | items,
        st.none() | st.dictionaries(texts, texts, max_size=2),
        st.booleans(),
    ),
    ev.TextDelta: st.builds(ev.TextDelta, response_ids, item_ids, texts),
    ev.SpeechDelta: st.builds(ev.SpeechDelta, response_ids, item_ids, chunks, st.lists(words, max_size=2).map(tuple)),
    ev.ToolCallDelta: st.builds(ev.ToolCallDelta, response_ids, item_ids, texts, texts, texts),
    ev.ResponseEnded: st.builds(
        ev.ResponseEnded,
        response_ids,
        st.sampled_from(["completed", "cancelled", "failed", "incomplete"]),
        st.none() | st.sampled_from(["turn_detected", "engine_failed"]),
        st.lists(items, max_size=2).map(tuple),
        waterfall=st.builds(ev.Waterfall, endpoint=floats, first_byte=floats),
        providers=st.lists(texts, max_size=2).map(tuple),
        error=st.none() | texts,
    ),
    ev.ErrorRaised: st.builds(ev.ErrorRaised, texts, texts, st.none() | texts, st.none() | texts),
}
events = st.one_of(*EVENTS.values())

# --- the contract ---------------------------------------------------------------------------------


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
@given(message=mistaken(CONFIGURING).map(_text) | messages, later=st.sampled_from([CORRECT, CORRECT[::-1]]))
def test_a_refused_message_has_no_effect_on_later_ones(
    make: Callable[[], Wire], message: Message, later: list[Json]
) -> None:
    wire = make()
    if isinstance(received(wire, message), InputError):
        script: list[Message] = [b"\1\2", *map(_text, later)]
        assert dialogue(wire, script) == dialogue(make(), script)


@every_wire
@settings(deadline=None)
@given(script=st.lists(messages | events, max_size=12))
def test_events_are_sent_in_any_order_as_json_or_pcm(
    make: Callable[[], Wire], script: list[Message | ev.Output]
) -> None:
    wire = make()
    for step in script:
        if isinstance(step, str | bytes):
            received(wire, step)
            continue
        for message in sent(wire, step):
            if isinstance(message, str):
                assert isinstance(json.loads(message, parse_constant=refuse_constant), dict)
                message.encode()
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


@every_wire
def test_some_messages_of_each_dialect_are_accepted(make: Callable[[], Wire]) -> None:
    accepted = [message for message in CORRECT if not isinstance(received(make(), _text(message)), InputError)]
    assert len(accepted) > 8
