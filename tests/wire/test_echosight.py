"""The EchoSight dialect: messages in, events out, and back."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight import events as ev
from echosight.audio.formats import decode_audio
from echosight.conversation import AudioPart, Item
from echosight.errors import InputError, WireError
from echosight.media import AudioChunk, Transcript, Word
from echosight.options import GenerateOptions, SessionOptions, apply_changes
from echosight.wire.echosight import EchoSightWire, RecordWriter, acknowledgement
from echosight.wire.echosight_messages import Limits, read_content, read_options

SPEECH = AudioChunk(b"\1\2" * 240, 24_000)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "messages", "content", "input_audio", "data", "image_url", "turn_detection", "sample_rate"]
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["subscribe", "configure", "played", "restore", "text", "input_audio"]),
            max_size=5,
        )
    ),
)


def wire() -> EchoSightWire:
    return EchoSightWire("me")


def sent(w: EchoSightWire, event: ev.Output) -> list[Any]:
    return [m if isinstance(m, bytes) else orjson.loads(m) for m in w.send(event)]


@given(st.binary() | st.text() | json_values.map(lambda v: orjson.dumps(v).decode()))
def test_any_message_is_inputs_or_an_error_with_a_reason(message: str | bytes) -> None:
    try:
        inputs = list(wire().receive(message))
    except InputError as error:
        assert error.message
    else:
        assert all(isinstance(event, ev.Input) for event in inputs)


def test_a_subscription_is_acknowledged_once() -> None:
    w = wire()
    (configure, sync) = w.receive('{"type":"subscribe","sample_rate":8000,"voice":"en-gb","turn_detection":null}')
    assert isinstance(configure, ev.UpdateOptions)
    assert configure.changes == {"turn_detection": None, "response": {"voice": "en-gb"}}
    assert sync == ev.Sync("done")
    assert sent(w, ev.Synced("done", generating=False)) == [acknowledgement("me", "success", "done")]
    assert list(w.receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 8000))]


def test_every_field_of_turn_detection_can_be_set() -> None:
    fields = {"threshold": 0.7, "silence_duration_ms": 600, "prefix_padding_ms": 200, "min_speech_ms": 96}
    fields |= {"pause_ms": 128, "max_turn_ms": 9000, "interrupt_response": False}
    message = orjson.dumps({"type": "configure", "turn_detection": fields}).decode()
    (configure, _) = wire().receive(message)
    assert isinstance(configure, ev.UpdateOptions)
    turn = apply_changes(SessionOptions(), configure.changes).turn_detection
    assert turn is not None
    assert (turn.threshold, turn.min_endpointing_delay_ms, turn.prefix_padding_ms) == (0.7, 600, 200)
    assert (turn.min_speech_ms, turn.speculation_delay_ms, turn.max_turn_ms) == (96, 128, 9000)
    assert not turn.interrupt_response


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ('{"type":"subscribe","sample_rate":1}', "sample_rate"),
        ('{"type":"subscribe","sample_rate":"fast"}', "sample_rate"),
        ('{"type":"subscribe","audio":"vinyl"}', "audio"),
        ('{"type":"subscribe","turn_detection":{"threshold":2}}', "turn_detection.threshold"),
        ('{"type":"subscribe","turn_detection":{"threshold":true}}', "turn_detection.threshold"),
        ('{"type":"subscribe","turn_detection":{"nonsense":1}}', "turn_detection.nonsense"),
        ('{"type":"dance"}', "type"),
        ('{"messages":[{"role":"assistant","content":[]}]}', "messages[0].role"),
        ('{"messages":[{"role":"user","content":[{"type":"text"}]}]}', "messages[0].content[0].text"),
    ],
)
def test_an_error_names_the_field_and_nothing_changes(message: str, param: str) -> None:
    w = wire()
    with pytest.raises(WireError) as refused:
        list(w.receive(message))
    assert refused.value.param == param
    assert list(w.receive(b"\1\2")) == [ev.Audio(AudioChunk(b"\1\2", 16_000))]


def test_typed_text_is_a_whole_turn_and_text_with_speech_is_not() -> None:
    text = {"type": "text", "text": "hi"}
    pcm = base64.b64encode(b"\0\0" * 160).decode()
    sound = {"type": "input_audio", "input_audio": {"data": pcm, "format": "pcm16", "sample_rate": 8000}}
    kinds = [type(e) for e in read_content({"messages": [{"role": "user", "content": [text]}]}).to_events()]
    assert kinds == [ev.Text, ev.CommitInput, ev.CreateResponse]
    live = list(read_content({"messages": [{"role": "user", "content": [sound, text]}]}).to_events())
    assert live == [ev.Text("hi"), ev.Audio(AudioChunk(b"\0\0" * 160, 8000))]


def test_audio_of_mixed_rates_becomes_one_item() -> None:
    def piece(rate: int) -> dict[str, Any]:
        data = base64.b64encode(bytes(2 * rate)).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "pcm16", "sample_rate": rate}}

    item = read_content({"messages": [{"role": "user", "content": [piece(8000), piece(48_000)]}]}).to_item()
    assert item is not None
    assert item.audio is not None
    assert item.audio.duration_ms == 2000


def test_too_much_audio_is_refused() -> None:
    data = base64.b64encode(bytes(64_000)).decode()
    item = {"type": "input_audio", "input_audio": {"data": data, "format": "pcm16"}}
    with pytest.raises(InputError) as refused:
        read_content({"messages": [{"role": "user", "content": [item, item]}]}, Limits(audio_seconds=3))
    assert refused.value.status == 413


def test_init_options_holds_a_voice_sample_and_options() -> None:
    data = base64.b64encode(bytes(320)).decode()
    options, sample = read_options(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": data, "format": "pcm16"}},
                        {"type": "options", "options": {"use_audio_prompt": 1, "vad_threshold": 0.8}},
                    ],
                }
            ]
        }
    )
    assert sample is not None
    assert sample.samples == 160
    assert options is not None
    assert options.vad_threshold == 0.8


def test_a_response_is_written_as_numbered_records() -> None:
    records = RecordWriter("me")
    item = Item("user", (AudioPart(b"\1\1" * 16, duration_ms=1),))
    first = records.write(ev.ResponseStarted("t", GenerateOptions(), item))
    assert first is not None
    assert first["response_id"] == 1
    assert decode_audio(base64.b64decode(first["choices"][0]["audio"])).pcm == b"\1\1" * 16
    text = records.write(ev.TextDelta("t", "i", "hello"))
    speech = records.write(ev.SpeechDelta("t", "i", SPEECH))
    assert text is not None
    assert speech is not None
    assert text["choices"][0] == {"role": "assistant", "audio": None, "text": "hello", "finish_reason": "processing"}
    wav = base64.b64decode(speech["choices"][0]["audio"])
    assert (len(wav), decode_audio(wav)) == (44 + 480, SPEECH)
    end = records.write(ev.ResponseEnded("t", "completed"))
    assert end is not None
    assert (end["response_id"], end["choices"][0]["text"]) == (4, "\n<end>")


@pytest.mark.parametrize(
    ("outcome", "reason"), [("completed", "stop"), ("cancelled", "interrupted"), ("incomplete", "length")]
)
def test_the_last_record_says_how_the_response_ended(outcome: ev.Outcome, reason: str) -> None:
    record = RecordWriter("me").write(ev.ResponseEnded("t", outcome))
    assert record is not None
    assert record["choices"][0]["finish_reason"] == reason


def test_a_failed_response_ends_with_an_error() -> None:
    record = RecordWriter("me").write(ev.ResponseEnded("t", "failed", "engine_failed", error="it broke"))
    assert record == {"id": "me", "error": {"code": "engine_failed", "message": "it broke"}}


def test_binary_speech_follows_its_record() -> None:
    w = wire()
    list(w.receive('{"type":"subscribe","audio":"binary","events":true}'))
    record, pcm = sent(w, ev.SpeechDelta("t", "i", SPEECH, (Word(20, 5),)))
    assert record["choices"][0]["audio"] == "binary"
    assert (record["item_id"], record["words"]) == ("i", [[20, 5]])
    assert pcm == SPEECH.pcm


def test_notifications_are_sent_to_clients_that_subscribed_to_events() -> None:
    event = ev.TranscriptUpdated("i", Transcript("hello", final=False))
    w = wire()
    assert sent(w, event) == []
    list(w.receive('{"type":"subscribe","events":true}'))
    (notification,) = sent(w, event)
    assert notification == {"type": "transcript", "item_id": "i", "text": "hello", "final": False}
