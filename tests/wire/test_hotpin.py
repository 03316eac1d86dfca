"""The Hotpin dialect: messages in, events out, and back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight import events as ev
from echosight.audio.formats import decode_audio
from echosight.errors import WireError
from echosight.media import AudioChunk, Transcript
from echosight.options import GenerateOptions, SessionOptions, apply_changes
from echosight.wire import Message
from echosight.wire.hotpin import CHUNK_BYTES, Handshake, HotpinWire, read_handshake

COMMIT_EMPTY = "input_audio_buffer_commit_empty"
COMPLETE = {"status": "complete"}
INTERRUPTED = {"status": "complete", "interrupted": True}
END_OF_TURN = [ev.CommitInput(), ev.CreateResponse(interrupt=True)]


def wire(**choices: Any) -> HotpinWire:
    return HotpinWire(Handshake("pin", **choices))


def signal(name: str) -> str:
    return orjson.dumps({"signal": name}).decode()


def sent(w: HotpinWire, *events: ev.Output) -> list[Any]:
    return [m if isinstance(m, bytes) else orjson.loads(m) for event in events for m in w.send(event)]


def ended(outcome: Any = "completed", reason: str | None = None, error: str | None = None) -> ev.ResponseEnded:
    return ev.ResponseEnded("r", outcome, reason, error=error)


def speech(samples: int) -> ev.SpeechDelta:
    return ev.SpeechDelta("r", "i", AudioChunk(b"\1\2" * samples))


def turn(text: str) -> list[ev.Output]:
    return [
        ev.InputCommitted("u", None),
        ev.ResponseStarted("r", GenerateOptions()),
        ev.TranscriptUpdated("u", Transcript(text)),
    ]


def stage(name: str, **fields: str) -> dict[str, str]:
    return {"status": "processing", "stage": name, **fields}


# --- the handshake --------------------------------------------------------------------------------


def test_a_handshake_is_acknowledged_with_its_session() -> None:
    w = HotpinWire(read_handshake('{"session_id": "unique"}'))
    assert [orjson.loads(m) for m in w.greet()] == [{"status": "connected", "session_id": "unique"}]


def test_a_handshake_without_options_leaves_the_end_of_a_turn_to_the_device() -> None:
    options = apply_changes(SessionOptions(), read_handshake('{"session_id": "x"}').changes(SessionOptions()))
    assert options.turn_detection is None
    assert options.output_sample_rate == 16_000


def test_a_handshake_chooses_rates_turn_detection_language_and_voice() -> None:
    message = {
        "session_id": "x",
        "sample_rate": 8000,
        "output_rate": 44100,
        "vad": True,
        "language": "de",
        "voice": "v",
    }
    handshake = read_handshake(orjson.dumps(message).decode())
    options = apply_changes(SessionOptions(), handshake.changes(SessionOptions()))
    assert options.turn_detection == SessionOptions().turn_detection
    assert (options.output_sample_rate, options.language, options.response.voice) == (44_100, "de", "v")
    assert list(HotpinWire(handshake).receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 8000))]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (b"\1\2", "handshake_required", None),
        ("{}", "handshake_required", None),
        ('"hello"', "handshake_required", None),
        ("not json", "invalid_json", None),
        ('{"session_id": ""}', "invalid_message", "session_id"),
        ('{"session_id": 7}', "invalid_message", "session_id"),
        ('{"session_id": "x", "format": "mp3"}', "invalid_message", "format"),
        ('{"session_id": "x", "format": "opus", "output_rate": 44100}', "invalid_message", "output_rate"),
        ('{"session_id": "x", "sample_rate": 1}', "invalid_message", "sample_rate"),
        ('{"session_id": "x", "output_rate": true}', "invalid_type", "output_rate"),
        ('{"session_id": "x", "vad": "yes"}', "invalid_type", "vad"),
    ],
)
def test_a_wrong_handshake_is_refused_with_the_field(message: Message, code: str, param: str | None) -> None:
    with pytest.raises(WireError) as refused:
        read_handshake(message)
    assert (refused.value.code, refused.value.param) == (code, param)


# --- what devices send ----------------------------------------------------------------------------


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_chunks_of_any_size_are_one_stream_of_samples(pcm: bytes, cuts: list[int]) -> None:
    w = wire()
    edges = [0, *sorted(cuts), len(pcm)]
    received = b""
    for start, end in pairwise(edges):
        for event in w.receive(pcm[start:end]):
            assert isinstance(event, ev.Audio)
            received += event.chunk.pcm
    assert received == pcm[: len(pcm) // 2 * 2]


def test_half_a_sample_before_eos_does_not_shift_the_next_turn() -> None:
    w = wire()
    list(w.receive(b"\1\2\3"))
    assert list(w.receive(signal("EOS"))) == END_OF_TURN
    assert list(w.receive(b"\4\5")) == [ev.Cancel(), ev.Audio(AudioChunk(b"\4\5"))]


def test_only_the_first_audio_of_a_turn_stops_the_response() -> None:
    w = wire()
    list(w.receive(signal("EOS")))
    kinds = [type(event) for _ in range(3) for event in w.receive(b"\1\2")]
    assert kinds == [ev.Cancel, ev.Audio, ev.Audio, ev.Audio]


def test_reset_and_stop() -> None:
    assert list(wire().receive(signal("RESET"))) == [ev.Reset(), ev.Sync("reset")]
    assert list(wire().receive(signal("STOP"))) == [ev.Cancel()]
    assert sent(wire(), ev.Synced("reset", generating=False)) == [{"status": "reset"}]


@pytest.mark.parametrize("message", [signal("eos"), '{"signal": 1}', "[]", '{"session_id": "other"}', "{}"])
def test_other_messages_are_refused(message: str) -> None:
    with pytest.raises(WireError):
        list(wire().receive(message))


# --- what devices are sent ------------------------------------------------------------------------


def test_a_response_passes_through_its_stages_and_ends_in_complete() -> None:
    w = wire()
    assert sent(w, *turn("hello there")) == [stage("transcription"), stage("llm", transcript="hello there")]
    assert sent(w, ev.TextDelta("r", "i", "Good "), ev.TextDelta("r", "i", "day.")) == []
    first, *chunks = sent(w, speech(5000), ended())
    assert first == stage("tts", response="Good day.")
    *chunks, last = chunks
    assert last == COMPLETE
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 44 + 10_000 - 2 * CHUNK_BYTES]
    wav = b"".join(chunks)
    assert decode_audio(wav).pcm == b"\1\2" * 5000
    assert wav.count(b"RIFF") == 1


def test_the_text_comes_again_when_it_has_grown_behind_the_first_speech() -> None:
    w = wire()
    sent(w, *turn("hi"))
    assert sent(w, ev.TextDelta("r", "i", "One. "), speech(10)) == [stage("tts", response="One. ")]
    shown, wav, complete = sent(w, ev.TextDelta("r", "i", "[BEEP] Two."), ended())
    assert shown == stage("tts", response="One. [BEEP] Two.")
    assert wav[44:] == b"\1\2" * 10
    assert complete == COMPLETE


def test_every_response_has_a_header_of_its_own() -> None:
    w = wire()
    for _ in range(2):
        assert sent(w, *turn("hi"), speech(10), ended())[-2][:4] == b"RIFF"


def test_a_response_without_speech_shows_its_text() -> None:
    w = wire()
    assert sent(w, *turn("hi"), ev.TextDelta("r", "i", "Yes"), ended())[2:] == [stage("tts", response="Yes"), COMPLETE]


def test_an_engine_without_transcripts_still_passes_through_every_stage() -> None:
    got = sent(wire(), ev.InputCommitted("u", None), ev.TextDelta("r", "i", "Yes"), speech(1))
    assert got == [stage("transcription"), stage("llm", transcript=""), stage("tts", response="Yes")]


def test_partial_transcripts_are_not_shown() -> None:
    w = wire()
    sent(w, ev.InputCommitted("u", None))
    assert sent(w, ev.TranscriptUpdated("u", Transcript("he", final=False))) == []
    assert sent(w, ev.TranscriptUpdated("earlier", Transcript("other"))) == []


def test_an_interrupted_response_ends_without_the_rest_of_its_speech() -> None:
    w = wire()
    sent(w, *turn("hi"), speech(10))
    assert sent(w, ended("cancelled", "client_cancelled")) == [INTERRUPTED]


def test_a_response_that_was_complete_but_unsent_when_the_device_stopped_it_counts_as_interrupted() -> None:
    w = wire()
    sent(w, *turn("hi"), speech(10))
    list(w.receive(signal("STOP")))
    assert sent(w, ended()) == [INTERRUPTED]
    assert sent(w, *turn("hi"), ended())[-1] == COMPLETE


def test_a_failed_response_is_an_error_and_then_complete() -> None:
    w = wire()
    sent(w, *turn("hi"))
    error = {"status": "error", "code": "engine_failed", "message": "The engine failed"}
    assert sent(w, ended("failed", "engine_failed", "The engine failed")) == [error, COMPLETE]


def test_eos_without_audio_is_an_error_and_then_complete() -> None:
    error, complete = sent(wire(), ev.ErrorRaised(COMMIT_EMPTY, "buffer too small"))
    assert (error["status"], error["code"], complete) == ("error", COMMIT_EMPTY, COMPLETE)
    assert "EOS" in error["message"]


def test_eos_without_audio_does_not_end_the_response_in_progress() -> None:
    w = wire()
    sent(w, *turn("hi"))
    assert [m["status"] for m in sent(w, ev.ErrorRaised(COMMIT_EMPTY, "buffer too small"))] == ["error"]
    assert sent(w, ended()) == [COMPLETE]


def test_a_turn_that_is_too_long_is_reported_once() -> None:
    w = wire()
    too_long = ev.ErrorRaised("input_audio_buffer_too_long", "commit or clear it")
    assert len(sent(w, too_long, too_long, too_long)) == 1
    list(w.receive(signal("RESET")))
    assert len(sent(w, too_long)) == 1


# --- with the server's turn detection -------------------------------------------------------------


def test_with_vad_the_audio_itself_stops_nothing() -> None:
    w = wire(vad=True)
    sent(w, *turn("hi"))
    assert list(w.receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2"))]


def test_with_vad_eos_ends_the_turn_only_while_speech_is_heard() -> None:
    w = wire(vad=True)
    with pytest.raises(WireError):
        list(w.receive(signal("EOS")))
    sent(w, ev.SpeechStarted("u", 0))
    assert list(w.receive(signal("EOS"))) == END_OF_TURN


def test_with_vad_an_eos_behind_the_end_that_the_server_found_is_ignored() -> None:
    w = wire(vad=True)
    sent(w, ev.SpeechStarted("u", 0), ev.SpeechStopped("u", 9), *turn("hi"))
    assert list(w.receive(signal("EOS"))) == []
