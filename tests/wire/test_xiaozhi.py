"""The dialect of the xiaozhi firmware: messages in, events out, and back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from echosight import events as ev
from echosight.errors import WireError
from echosight.media import AudioChunk, Transcript
from echosight.options import SessionOptions, apply_changes

pytest.importorskip("av")

from echosight.audio.opus import OpusEncoder
from echosight.wire.xiaozhi import Hello, XiaozhiWire, frame, read_hello, unframe


def text(kind: str, **fields: Any) -> str:
    return orjson.dumps({"type": kind, **fields}).decode()


def sent(wire: XiaozhiWire, *events: ev.Output) -> list[Any]:
    return [m if isinstance(m, bytes) else orjson.loads(m) for event in events for m in wire.send(event)]


def shown(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["type"], record.get("state"), record.get("text")


def listening(mode: str, version: int = 1) -> XiaozhiWire:
    wire = XiaozhiWire(Hello(version), "s")
    list(wire.receive(text("listen", state="start", mode=mode)))
    return wire


PACKET = OpusEncoder(16_000).push(bytes(2 * 960))[0]


def test_hello_is_answered_with_the_format_of_the_speech() -> None:
    audio = {"format": "opus", "sample_rate": 16_000, "channels": 1, "frame_duration": 60}
    hello = read_hello(text("hello", version=3, transport="websocket", audio_params=audio))
    assert hello == Hello(3, 16_000)
    (answer,) = map(orjson.loads, XiaozhiWire(hello, "s").greet())
    assert answer == {
        "type": "hello",
        "transport": "websocket",
        "session_id": "s",
        "audio_params": {"format": "opus", "sample_rate": 24_000, "channels": 1, "frame_duration": 60},
    }


def test_the_version_of_the_header_holds_where_hello_has_none() -> None:
    assert read_hello(text("hello"), 2).version == 2


@pytest.mark.parametrize(
    "message",
    [b"\1", text("listen"), text("hello", version=4), text("hello", audio_params={"format": "pcm"}), "[]"],
)
def test_a_wrong_hello_is_refused(message: str | bytes) -> None:
    with pytest.raises(WireError):
        read_hello(message)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_packets_are_framed_by_the_version_of_the_device(version: int) -> None:
    assert unframe(version, frame(version, b"opus")) == (False, b"opus")
    assert len(frame(version, b"opus")) == 4 + {1: 0, 2: 16, 3: 4}[version]
    (audio,) = listening("auto", version).receive(frame(version, PACKET))
    assert isinstance(audio, ev.Audio)
    assert abs(audio.chunk.samples - 960) < 32


@pytest.mark.parametrize("version", [2, 3])
def test_a_wrong_frame_is_refused(version: int) -> None:
    for message in (b"", b"\0", frame(version, b"opus")[:-1]):
        with pytest.raises(WireError):
            list(listening("auto", version).receive(message))


def test_json_may_come_in_a_binary_message() -> None:
    body = text("abort").encode()
    assert list(listening("auto", 3).receive(b"\1\0" + len(body).to_bytes(2, "big") + body)) == [ev.Cancel()]


def test_audio_counts_only_while_the_device_listens() -> None:
    assert list(XiaozhiWire(Hello(), "s").receive(PACKET)) == []
    wire = listening("auto")
    assert list(wire.receive(PACKET))
    sent(wire, ev.InputCommitted("u", None))
    assert list(wire.receive(PACKET)) == [], "half duplex: the device hears its own speaker"
    wire = listening("realtime")
    sent(wire, ev.InputCommitted("u", None))
    assert list(wire.receive(PACKET))


def test_the_server_ends_the_turn_in_auto_and_the_device_in_manual() -> None:
    for mode, detects in (("auto", True), ("realtime", True), ("manual", False)):
        update, *_ = XiaozhiWire(Hello(), "s").receive(text("listen", state="start", mode=mode))
        assert isinstance(update, ev.UpdateOptions)
        assert (apply_changes(SessionOptions(), update.changes).turn_detection is not None) == detects
    end = [ev.CommitInput(), ev.CreateResponse(interrupt=True)]
    assert list(listening("manual").receive(text("listen", state="stop"))) == end
    assert list(listening("auto").receive(text("listen", state="stop"))) == []


def test_a_wake_word_is_a_typed_turn_and_abort_stops_the_response() -> None:
    wire = XiaozhiWire(Hello(), "s")
    events = list(wire.receive(text("listen", state="detect", text="hey robot")))
    assert ev.Text("hey robot") in events
    assert list(wire.receive(text("abort", reason="wake_word_detected"))) == [ev.Cancel()]
    assert list(wire.receive(text("mcp", payload={}))) == []


@pytest.mark.parametrize("message", [text("shout"), "[]", text("listen", state="start", mode="loud"), text("hello")])
def test_other_messages_are_refused(message: str) -> None:
    with pytest.raises(WireError):
        list(XiaozhiWire(Hello(), "s").receive(message))


def test_a_response_is_announced_before_its_packets_and_ends_in_stop() -> None:
    wire = XiaozhiWire(Hello(), "s")
    got = sent(
        wire,
        ev.InputCommitted("u", None),
        ev.TranscriptUpdated("u", Transcript("hello")),
        ev.TextDelta("r", "i", "Good day to you. How "),
        ev.SpeechDelta("r", "i", AudioChunk(b"\1\2" * 2000, 24_000)),
        ev.TextDelta("r", "i", "are you?"),
        ev.ResponseEnded("r", "completed"),
    )
    assert [message if isinstance(message, bytes) else shown(message) for message in got if message != got[1]] == [
        ("stt", None, "hello"),
        ("tts", "start", None),
        ("tts", "sentence_start", "Good day to you."),
        got[4],
        ("tts", "sentence_start", "How are you?"),
        got[6],
        ("tts", "stop", None),
    ]
    assert isinstance(got[4], bytes)
    assert isinstance(got[6], bytes)
    assert all(message["session_id"] == "s" for message in got if isinstance(message, dict))


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_a_response_that_does_not_speak_still_starts_and_stops(outcome: Any) -> None:
    got = sent(XiaozhiWire(Hello(), "s"), ev.ResponseEnded("r", outcome, "reason"))
    assert [m["state"] for m in got if m["type"] == "tts"] == ["start", "stop"]
    assert bool([m for m in got if m["type"] == "alert"]) == (outcome == "failed")
