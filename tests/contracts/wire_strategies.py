"""Messages of every dialect and events of every kind, for the contract of wires."""

from __future__ import annotations

import base64
import io
from typing import Any

import orjson
from hypothesis import strategies as st
from PIL import Image

from echosight import events as ev
from echosight.audio.formats import wav_bytes
from echosight.conversation import AudioPart, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.media import AudioChunk, ImageFrame, Transcript, Word
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.wire import Message

Json = dict[str, Any]

BRIDGE_UPDATE: Json = {"type": "session.update", "session": {"voice": "one", "modalities": ["text", "audio"]}}
SUBSCRIBE: Json = {"type": "subscribe", "sample_rate": 8_000, "audio": "binary", "events": True}

# --- messages of clients: correct ones of all dialects, the same with a mistake, and noise ------------


def to_text(message: Any) -> str:
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
    {"type": "config", "mode": "assistant", "sample_rate": 8_000, "language": "en", "speech_threshold": 0.4},
    {"type": "playback", "item_id": "item_1", "played_ms": 20},
    *({"type": "listen", "state": state, "mode": "manual", "text": "hey"} for state in ("start", "stop", "detect")),
    {"type": "abort", "reason": "wake_word_detected"},
    *({"signal": signal} for signal in ("EOS", "STOP", "RESET")),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


CONFIGURING = [m for m in CORRECT if m.get("type") in ("subscribe", "configure", "config", "listen", "session.update")]


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
    st.sampled_from([*CORRECT, *map(with_event_id, CORRECT)]).map(to_text)
    | mistaken().map(to_text)
    | json_values.map(to_text)
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
