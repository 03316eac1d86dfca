"""The voice assistant's dialect: messages in, events out, and back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from echosight import events as ev
from echosight.conversation import AudioPart, Item
from echosight.errors import WireError
from echosight.media import AudioChunk, Transcript
from echosight.options import GenerateOptions, SessionOptions, apply_changes
from echosight.wire.assistant import AssistantWire, session_id_of


def text(**message: Any) -> str:
    return orjson.dumps(message).decode()


def sent(wire: AssistantWire, *events: ev.Output) -> list[Any]:
    return [m if isinstance(m, bytes) else orjson.loads(m) for event in events for m in wire.send(event)]


def configured(**fields: Any) -> tuple[AssistantWire, SessionOptions]:
    wire = AssistantWire()
    (update,) = wire.receive(text(type="config", mode="assistant", **fields))
    assert isinstance(update, ev.UpdateOptions)
    return wire, apply_changes(SessionOptions(), update.changes)


def test_audio_before_any_config_is_16_khz() -> None:
    assert list(AssistantWire().receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 16_000))]


def test_chunks_of_odd_sizes_are_one_stream_of_samples() -> None:
    wire = AssistantWire()
    assert list(wire.receive(b"\1")) == []
    assert list(wire.receive(b"\2\3")) == [ev.Audio(AudioChunk(b"\1\2"))]
    assert list(wire.receive(b"\4")) == [ev.Audio(AudioChunk(b"\3\4"))]


def test_config_chooses_rates_language_voice_prompt_and_threshold() -> None:
    wire, options = configured(
        sample_rate=8000, output_rate=24_000, language="de", voice="v", instructions="be kind", speech_threshold=0.3
    )
    assert (options.output_sample_rate, options.language, options.instructions) == (24_000, "de", "be kind")
    assert options.response.voice == "v"
    assert options.turn_detection is not None
    assert options.turn_detection.threshold == 0.3
    assert list(wire.receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 8000))]
    (record,) = sent(wire, ev.OptionsUpdated(options))
    expected = {"type": "config", "sample_rate": 8000, "output_rate": 24_000, "language": "de", "voice": "v"}
    assert record == expected


def test_speech_comes_back_at_the_rate_of_the_microphone_unless_chosen() -> None:
    _, options = configured(sample_rate=48_000)
    assert options.output_sample_rate == 48_000


def test_stop_reset_and_playback() -> None:
    wire = AssistantWire()
    assert list(wire.receive(text(type="stop"))) == [ev.Cancel()]
    assert list(wire.receive(text(type="reset"))) == [ev.Reset(), ev.Sync("reset")]
    playback = text(type="playback", item_id="i", played_ms=40)
    assert list(wire.receive(playback)) == [ev.PlaybackProgress("i", 40)]
    assert sent(wire, ev.Synced("reset", generating=False))[0] == {"type": "reset"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "config", "mode": "analysis"}, "mode"),
        ({"type": "config", "encoding": "mp3"}, "encoding"),
        ({"type": "config", "sample_rate": 1}, "sample_rate"),
        ({"type": "config", "sample_rate": 8000, "voice": 7}, "voice"),
        ({"type": "config", "sample_rate": 8000, "speech_threshold": 2}, "turn_detection.threshold"),
        ({"type": "playback", "item_id": "i", "played_ms": -1}, "played_ms"),
        ({"type": "shout"}, "type"),
        ({}, "type"),
    ],
)
def test_a_wrong_message_is_refused_with_its_field_and_changes_nothing(message: Any, param: str) -> None:
    wire = AssistantWire()
    with pytest.raises(WireError) as refused:
        list(wire.receive(text(**message)))
    assert refused.value.param == param
    assert list(wire.receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 16_000))]


def test_a_session_is_named_by_the_first_message_only_if_that_says_so() -> None:
    assert session_id_of(b"\1\2") is None
    assert session_id_of(text(type="config")) is None
    assert session_id_of(text(type="config", session_id="me")) == "me"
    with pytest.raises(WireError):
        session_id_of(text(type="config", session_id=7))


def test_a_turn_is_shown_from_the_first_sound_to_done() -> None:
    wire = AssistantWire()
    got = sent(
        wire,
        ev.SpeechStarted("u", 0),
        ev.TranscriptUpdated("u", Transcript("hel", final=False)),
        ev.SpeechStopped("u", 9),
        ev.TranscriptUpdated("u", Transcript("hello")),
        ev.ResponseStarted("r", GenerateOptions()),
        ev.TextDelta("r", "i", "Good day."),
        ev.SpeechDelta("r", "i", AudioChunk(b"\1\2")),
        ev.SpeechDelta("r", "i", AudioChunk(b"\3\4")),
        ev.ResponseEnded("r", "completed", waterfall=ev.Waterfall(endpoint=384.04)),
    )
    stages = dict.fromkeys(("transcript", "first_text", "first_audio", "first_byte")) | {"endpoint": 384.0}
    assert got == [
        {"type": "listening", "item_id": "u"},
        {"type": "state", "state": "listening"},
        {"type": "transcript", "item_id": "u", "text": "hel", "final": False},
        {"type": "state", "state": "thinking"},
        {"type": "transcript", "item_id": "u", "text": "hello", "final": True},
        {"type": "response", "response_id": "r", "item_id": "i", "text": "Good day."},
        {"type": "state", "state": "speaking", "item_id": "i"},
        b"\1\2",
        b"\3\4",
        {"type": "done", "response_id": "r", "outcome": "completed", "reason": None, "stages_ms": stages},
        {"type": "state", "state": "idle"},
    ]


def test_speech_over_a_response_tells_the_client_what_was_heard_of_it() -> None:
    wire = AssistantWire()
    heard = Item("assistant", (AudioPart(None, duration_ms=700, transcript="Good"),), "i", status="incomplete")
    got = sent(
        wire, ev.SpeechStarted("u", 0), ev.ResponseEnded("r", "cancelled", "turn_detected", (heard,)), ev.InputCleared()
    )
    assert got[2] == {"type": "interrupted", "item_id": "i", "text": "Good", "played_ms": 700}
    assert [got[3]["type"], got[3]["outcome"], len(got)] == ["done", "cancelled", 4], "the user is still heard"


def test_speech_over_the_end_of_a_response_that_was_sent_also_interrupts() -> None:
    wire = AssistantWire()
    interrupted = {"type": "interrupted", "item_id": "i", "text": "Good", "played_ms": 700}
    assert sent(wire, ev.ItemTruncated("i", 700, "Good", requested=False)) == [interrupted]
    assert sent(wire, ev.ItemTruncated("i", 700, "Good", requested=True)) == []


def test_a_failed_response_is_an_error_and_done() -> None:
    got = sent(AssistantWire(), ev.ResponseEnded("r", "failed", "engine_failed", error="The engine failed"))
    assert got[0] == {"type": "error", "code": "engine_failed", "message": "The engine failed", "param": None}
    assert got[1]["type"] == "done"
