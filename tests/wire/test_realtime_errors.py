"""Errors use the service's own words, and a refused event has no effect."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.errors import WireError
from echosight.options import SessionOptions
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from tests.fakes import ScriptedEngine, words
from tests.wire.realtime_rig import client

USER = {"type": "message", "role": "user"}
TURNS = "session.audio.input.turn_detection"


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


def turns(**detection: Any) -> dict[str, Any]:
    return update(audio={"input": {"turn_detection": detection}})


def create(**item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": {**USER, **item}}


def nest(levels: int) -> dict[str, Any]:
    return {"a": nest(levels - 1)} if levels else {}


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "missing_required_parameter", "type"),
    ({"type": 3}, "invalid_type", "type"),
    ({"type": "x"}, "invalid_value", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": {"instructions": "x"}}, "missing_required_parameter", "session.type"),
    (update(foo=1), "unknown_parameter", "session.foo"),
    (update(modalities=["text"]), "unknown_parameter", "session.modalities"),
    (update(temperature=0.7), "unknown_parameter", "session.temperature"),
    (update(output_modalities=["text", "audio"]), "invalid_value", "session.output_modalities"),
    (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
    (update(audio={"output": {"speed": 2}}), "invalid_value", "session.audio.output.speed"),
    (update(audio={"output": {"volume": 2}}), "unknown_parameter", "session.audio.output.volume"),
    (update(audio={"input": {"format": {"type": "audio/mp3"}}}), "invalid_value", "session.audio.input.format.type"),
    (
        update(audio={"input": {"format": {"type": "audio/pcm", "rate": 8000}}}),
        "invalid_value",
        "session.audio.input.format.rate",
    ),
    (update(tools=[{"type": "function"}]), "missing_required_parameter", "session.tools[0].name"),
    (turns(type="magic"), "invalid_value", f"{TURNS}.type"),
    (turns(type="server_vad", threshold=1.5), "invalid_value", f"{TURNS}.threshold"),
    (turns(type="server_vad", loudness=1), "unknown_parameter", f"{TURNS}.loudness"),
    (turns(type="semantic_vad", eagerness="wild"), "invalid_value", f"{TURNS}.eagerness"),
    (turns(type="server_vad", create_response="no"), "invalid_type", f"{TURNS}.create_response"),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": 7}, "invalid_type", "audio"),
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
    ({"type": "conversation.item.create"}, "missing_required_parameter", "item"),
    (create(role="robot", content=[]), "invalid_value", "item.role"),
    (create(), "missing_required_parameter", "item.content"),
    (create(id="root", content=[]), "invalid_value", "item.id"),
    (create(content=[{"type": "smell"}]), "invalid_value", "item.content[0].type"),
    (create(content=[{"type": "input_text"}]), "missing_required_parameter", "item.content[0].text"),
    (
        create(content=[{"type": "input_image", "image_url": "https://example.org/cat.png"}]),
        "invalid_image",
        "item.content[0].image_url",
    ),
    (create(content=[{"type": "input_audio", "audio": "?"}]), "invalid_value", "item.content[0].audio"),
    ({**create(content=[]), "previous_item_id": "nobody"}, "item_create_invalid_previous_item_id", "previous_item_id"),
    ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_retrieve_invalid_item_id", "item_id"),
    ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id", "item_id"),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1},
        "item_truncate_invalid_item_id",
        "item_id",
    ),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0},
        "missing_required_parameter",
        "audio_end_ms",
    ),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1e300},
        "invalid_value",
        "audio_end_ms",
    ),
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
    ({"type": "response.create", "response": {"foo": 1}}, "unknown_parameter", "response.foo"),
    ({"type": "response.create", "response": []}, "invalid_type", "response"),
    (update(tools=[{"type": "mcp", "server_label": "x"}]), "invalid_value", "session.tools[0].type"),
    (update(tool_choice={"type": "mcp", "server_label": "x"}), "invalid_value", "session.tool_choice"),
    (update(tool_choice={"type": "function"}), "invalid_value", "session.tool_choice"),
    (update(prompt={"id": "pmpt_1"}), "invalid_value", "session.prompt"),
    (update(truncation="sometimes"), "invalid_value", "session.truncation"),
    (turns(type="semantic_vad", eagerness=[]), "invalid_value", f"{TURNS}.eagerness"),
    (update(tools=[{"type": "function", "name": "f", "parameters": nest(100)}]), "invalid_value", "session"),
    (create(content=[{"type": "input_audio"}]), "missing_required_parameter", "item.content[0].audio"),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": 1, "audio_end_ms": 1},
        "invalid_value",
        "content_index",
    ),
    (
        {"type": "conversation.item.truncate", "item_id": "x", "content_index": "0", "audio_end_ms": 1},
        "invalid_type",
        "content_index",
    ),
    ({"type": "response.create", "response": {"conversation": "other"}}, "invalid_value", "response.conversation"),
    (
        {"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "x"}]}},
        "item_not_found",
        "response.input[0].id",
    ),
    (
        {"type": "response.create", "response": {"audio": {"output": {"format": {"type": "audio/mp3"}}}}},
        "invalid_value",
        "response.audio.output.format.type",
    ),
]


@pytest.mark.parametrize(("event", "code", "param"), WRONG, ids=lambda value: str(value)[:60])
async def test_errors_name_the_field_at_fault(event: dict[str, Any], code: str, param: str | None) -> None:
    async with client() as talk:
        before = talk.wire.session_json(talk.bench.session.options)
        await talk.send_raw(orjson.dumps({**event, "event_id": "mine"}).decode())
        error = await talk.error()
        assert (error["code"], error["param"]) == (code, param), error["message"]
        assert error["type"] == "invalid_request_error"
        assert error["event_id"] == "mine"
        assert talk.wire.session_json(talk.bench.session.options) == before
        assert talk.bench.session.conversation.items == []
        await talk.write("still here")


async def test_the_error_for_unknown_types_lists_the_known_ones() -> None:
    async with client() as talk:
        await talk.send("response.sing")
        message = (await talk.error())["message"]
    assert message.startswith("Invalid value: 'response.sing'. Supported values are: 'session.update', ")


async def test_frames_that_are_not_events_are_refused() -> None:
    async with client() as talk:
        for frame, code in ((b"\x00\x01", "invalid_event"), ("{", "invalid_json"), ("[]", "invalid_json")):
            await talk.send_raw(frame)
            assert (await talk.error())["code"] == code


async def test_the_error_for_a_small_buffer_says_how_small_it_is() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"turn_detection": None}})
        await talk.hear(60)
        await talk.send("input_audio_buffer.commit")
        message = (await talk.error())["message"]
    assert message.startswith(
        "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio,"
    )
    assert message.endswith(" but buffer only has 60.00ms of audio.")


async def test_one_response_at_a_time() -> None:
    async with client(ScriptedEngine([words("one")], gate=asyncio.Semaphore(0))) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        await talk.until("response.created")
        await talk.send("response.create", event_id="second")
        error = await talk.error()
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")


async def test_an_item_cannot_be_truncated_beyond_its_end() -> None:
    async with client() as talk:
        await talk.write("hi")
        await talk.send("response.create")
        item = (await talk.done())["output"][0]["id"]
        await talk.until("rate_limits.updated")
        await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=9_000)
        error = await talk.error()
    assert error["message"] == "Audio content of 200ms is already shorter than 9000ms"


async def test_the_voice_cannot_change_once_speech_was_sent() -> None:
    async with client() as talk:
        await talk.update(audio={"output": {"voice": "one"}})
        await talk.write("hi")
        await talk.send("response.create")
        await talk.until("rate_limits.updated")
        await talk.update(audio={"output": {"voice": "one", "speed": 1.2}})
        await talk.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "two"}}})
        assert (await talk.error())["code"] == "cannot_update_voice"


@pytest.mark.parametrize(("event_id", "code"), [(7, "invalid_type"), ("x" * 513, "string_above_max_length")])
async def test_event_ids_are_short_strings(event_id: Any, code: str) -> None:
    async with client() as talk:
        await talk.send("response.create", event_id=event_id)
        error = await talk.error()
        assert (error["code"], error["param"], error["event_id"]) == (code, "event_id", None)
        assert not talk.engine.conversations


async def test_null_does_not_change_fields_that_must_have_a_value() -> None:
    async with client() as talk:
        before = talk.wire.session_json(talk.bench.session.options)
        audio = {"input": {"format": None}, "output": {"voice": None, "speed": None, "format": None}}
        assert await talk.update(output_modalities=None, model=None, audio=audio) == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["session.update", "input_audio_buffer.append", "conversation.item.create", "response.create", "response.cancel"]
)
fields = st.sampled_from(["session", "audio", "item", "response", "type", "content", "turn_detection", "input"])
events = st.builds(lambda kind, body: {"type": kind, **body}, names, st.dictionaries(fields, json_values, max_size=4))

nested_fields = st.sampled_from(
    ["tools", "tool_choice", "output_modalities", "max_output_tokens", "truncation", "model", "instructions", "audio"]
)
flat_fields = st.sampled_from(
    ["modalities", "voice", "input_audio_format", "output_audio_format", "turn_detection", "temperature", "speed"]
)
input_fields = st.sampled_from(["format", "transcription", "noise_reduction", "turn_detection"])
turn_fields = st.sampled_from(["type", "eagerness", "threshold", "idle_timeout_ms", "create_response"])
turn_values = json_values | st.sampled_from(["semantic_vad", "server_vad"])
sessions = (
    st.dictionaries(nested_fields, json_values, max_size=2).map(lambda session: {"type": "realtime", **session})
    | st.dictionaries(flat_fields, json_values, max_size=2)
    | st.dictionaries(
        input_fields, json_values | st.dictionaries(turn_fields, turn_values, max_size=3), max_size=2
    ).map(lambda audio_input: {"type": "realtime", "audio": {"input": audio_input}})
)
updates = sessions.map(lambda session: {"type": "session.update", "session": session})


@given(
    (events | updates).map(lambda event: orjson.dumps(event).decode()) | st.text(max_size=40) | st.binary(max_size=40)
)
def test_any_message_is_inputs_or_a_wire_error(message: str | bytes) -> None:
    wire = RealtimeWire(SessionTemplate(), SessionOptions())
    before = wire.session_json(SessionOptions())
    try:
        list(wire.receive(message))
    except WireError as error:
        assert error.message
        assert wire.session_json(SessionOptions()) == before
