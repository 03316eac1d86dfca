"""The EchoSight dialect: acknowledgements, numbered records of responses, and the socket for both directions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from echosight import events as ev
from echosight.audio.formats import wav_bytes
from echosight.conversation import to_chunk
from echosight.errors import WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges, TurnDetectionChanges
from echosight.wire import Message
from echosight.wire.echosight_messages import Content, Limits, read_content, read_items
from echosight.wire.fields import optional_field, optional_rate, read_json, samples_to_ms, write_json
from echosight.wire.turn_detection import detection_changes

FINISH_REASONS = {"completed": "stop", "cancelled": "interrupted", "incomplete": "length"}


def acknowledgement(uid: str, content: str, finish_reason: str) -> dict[str, Any]:
    """`choices` is an object here and a list in records: existing clients rely on both."""
    return {"id": uid, "choices": {"role": "assistant", "content": content, "finish_reason": finish_reason}}


def finish_reason(content: Content, generating: bool) -> str:
    """The ``finish_reason`` of /stream's acknowledgement of a body."""
    if content.empty:
        return ""
    if content.stop:
        return "stop"
    if not content.has_audio and not content.is_typed:
        return "empty audio"
    return "skip" if generating else "done"


class RecordWriter:
    """Writes responses as numbered records, the same over SSE and WebSocket."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self._next_number = 1

    def write(self, event: ev.Output, *, wav: bool = True) -> dict[str, Any] | None:
        """The record of an event; None where it has none. `audio` is a WAV in base64, or null without `wav`."""
        match event:
            case ev.ResponseStarted(user_item=item):
                self._next_number = 1
                audio = item.audio if item is not None and wav else None
                user_audio = wav_bytes(to_chunk(audio)) if audio is not None and audio.pcm else None
                return self._record("assistant:\n", "processing", user_audio)
            case ev.TextDelta(text=text):
                return self._record(text, "processing")
            case ev.SpeechDelta():
                return self.write_speech(event, wav=wav)
            case ev.ResponseEnded(outcome="failed"):
                return {"id": self.uid, "error": {"code": event.reason, "message": event.error}}
            case ev.ResponseEnded():
                return {**self._record("\n<end>", FINISH_REASONS[event.outcome]), **waterfall(event)}
            case _:
                return None

    def write_speech(self, event: ev.SpeechDelta, *, wav: bool = True) -> dict[str, Any]:
        """The record of a piece of speech."""
        return self._record("", "processing", wav_bytes(event.chunk) if wav else None)

    def _record(self, text: str, finish_reason: str, wav: bytes | None = None) -> dict[str, Any]:
        audio = base64.b64encode(wav).decode() if wav is not None else None
        choice = {"role": "assistant", "audio": audio, "text": text, "finish_reason": finish_reason}
        record = {"id": self.uid, "response_id": self._next_number, "choices": [choice]}
        self._next_number += 1
        return record


def waterfall(event: ev.ResponseEnded) -> dict[str, Any]:
    """The parts that made a response, and when each stage was reached, in ms after the end of the user's speech."""
    stages = {k: None if v is None else round(v, 1) for k, v in asdict(event.waterfall).items()}
    return {"waterfall_ms": stages, "made_by": list(event.providers)}


class EchoSightWire:
    """One socket for both directions, once the client has subscribed.

    Text frames are bodies as for /stream, or one of the control messages ``subscribe``, ``configure``, ``stop``,
    ``commit``, ``clear``, ``reset``, ``restore`` (items of an earlier conversation, for a new session) and ``played``.
    The server acknowledges each of them except ``played``. Binary frames are mono PCM16 at the subscribed rate.
    """

    def __init__(self, uid: str, limits: Limits | None = None) -> None:
        self.client_event_id: str | None = None
        self._limits = limits or Limits()
        self._records = RecordWriter(uid)
        self._rate = INPUT_SAMPLE_RATE
        self._binary = False
        self._events = False

    def greet(self) -> tuple[Message, ...]:
        return ()

    def receive(self, message: Message) -> Iterator[ev.Input]:
        if isinstance(message, bytes):
            if len(message) % 2:
                raise WireError("PCM16 has two bytes a sample", code="invalid_audio")
            yield ev.Audio(AudioChunk(message, self._rate))
            return
        body = read_json(message)
        match body:
            case {"type": "subscribe" | "configure"}:
                yield ev.UpdateOptions(self._configure(body))
            case {"type": "stop"}:
                yield ev.Cancel()
            case {"type": "commit"}:
                yield ev.CommitInput()
                yield ev.CreateResponse(interrupt=True)
            case {"type": "clear"}:
                yield ev.ClearInput()
            case {"type": "reset"}:
                yield ev.Reset()
            case {"type": "restore", "items": list(items)}:
                yield from map(ev.AddItem, read_items(items))
            case {"type": "played", "item_id": str(item_id), "audio_ms": int(ms)} if ms >= 0:
                yield ev.PlaybackProgress(item_id, ms)
                return
            case {"type": "restore"}:
                raise WireError("restore must hold a list of items", param="items")
            case {"type": "played"}:
                raise WireError("played must hold an item_id and audio_ms, a whole number from 0", param="audio_ms")
            case {"type": str(kind)} if "messages" not in body:
                raise WireError(f"Unknown message type '{kind}'", code="unknown_type", param="type")
            case _:
                content = read_content(body, self._limits)
                yield from content.to_events()
                yield ev.Sync(finish_reason(content, generating=False))
                return
        yield ev.Sync("stop" if body["type"] == "stop" else "done")

    def send(self, event: ev.Output) -> Iterator[Message]:
        match event:
            case ev.Synced(tag, generating):
                reason = "skip" if tag == "done" and generating else tag
                yield write_json(acknowledgement(self._records.uid, "success", reason))
            case ev.ErrorRaised():
                yield write_json({"error": event.message, "code": event.code, "param": event.param})
            case ev.SpeechDelta():
                yield from self._send_speech(event)
            case _:
                if (record := self._records.write(event, wav=not self._binary)) is not None:
                    if self._events and isinstance(event, ev.TextDelta):
                        record["item_id"] = event.item_id
                    yield write_json(record)
                if self._events and (notification := _notification(event)) is not None:
                    yield write_json(notification)

    def _send_speech(self, event: ev.SpeechDelta) -> Iterator[Message]:
        record = self._records.write_speech(event, wav=not self._binary)
        if self._events:
            record["item_id"] = event.item_id
            record["words"] = [[word.start_ms, word.text_end] for word in event.words]
        if self._binary:
            record["choices"][0]["audio"] = "binary"
        yield write_json(record)
        if self._binary:
            yield event.chunk.pcm

    def _configure(self, body: dict[str, Any]) -> SessionChanges:
        """The changes of a subscribe or configure message. Raises `WireError`; then nothing changes."""
        rate = optional_rate(body, "sample_rate")
        audio = optional_field(body, "audio", str)
        if audio not in (None, "wav", "binary"):
            raise WireError("audio must be 'wav' or 'binary'", param="audio")
        events = optional_field(body, "events", bool)
        changes = _session_changes(body)
        self._rate = self._rate if rate is None else rate
        self._binary = self._binary if audio is None else audio == "binary"
        self._events = self._events if events is None else events
        return changes


def _session_changes(body: dict[str, Any]) -> SessionChanges:
    """The options that a subscribe or configure message names. Raises `WireError`."""
    changes: dict[str, Any] = {}
    if "turn_detection" in body:
        detection = body["turn_detection"]
        changes["turn_detection"] = None if detection is None else _detection_changes(detection)
    if (voice := optional_field(body, "voice", str)) is not None:
        changes["response"] = {"voice": voice}
    fields = {"instructions": str, "language": str, "levels": bool, "record": bool}
    for field, kind in fields.items():
        if (value := optional_field(body, field, kind)) is not None:
            changes["vad_levels" if field == "levels" else field] = value
    return cast(SessionChanges, changes)


def _detection_changes(data: Any) -> TurnDetectionChanges:
    """Only a type that the client names decides how long a silence ends a turn that sounds incomplete."""
    match data:
        case {"type": "semantic_vad"}:
            return detection_changes({"eagerness": "auto", **data}, echosight=True)
        case {"type": "server_vad"}:
            return {"max_endpointing_delay_ms": 0, **detection_changes(data, echosight=True)}
        case _:
            return detection_changes(data, echosight=True)


def _notification(event: ev.Output) -> dict[str, Any] | None:
    """What a client that subscribed with ``events`` is sent besides the records."""
    match event:
        case ev.SessionOpened(session_id):
            return {"type": "opened", "session_id": session_id}
        case ev.ResponseStarted(response_id=response_id, user_item=item):
            return {"type": "turn_started", "turn": response_id, "item_id": item.id if item is not None else None}
        case ev.ItemRemoved(item_id):
            return {"type": "removed", "item_id": item_id}
        case ev.SpeechStarted(item_id, position):
            return {"type": "speech_started", "item_id": item_id, "audio_ms": samples_to_ms(position)}
        case ev.SpeechStopped(item_id, position):
            return {"type": "speech_stopped", "item_id": item_id, "audio_ms": samples_to_ms(position)}
        case ev.TranscriptUpdated(item_id, transcript):
            return {"type": "transcript", "item_id": item_id, "text": transcript.text, "final": transcript.final}
        case ev.TranscriptionFailed(item_id, code, message):
            return {"type": "not_understood", "item_id": item_id, "code": code, "message": message}
        case ev.VadLevel(position, probability):
            return {"type": "level", "audio_ms": samples_to_ms(position), "probability": round(probability, 3)}
        case ev.ItemDone(item, _, response_id) if response_id is not None and item.status == "incomplete":
            return {"type": "truncated", "item_id": item.id, "text": item.text}
        case ev.ItemTruncated(item_id, _, text):
            return {"type": "truncated", "item_id": item_id, "text": text}
        case ev.ResponseEnded():
            return {"type": "waterfall", "turn": event.response_id, "outcome": event.outcome, **waterfall(event)}
        case _:
            return None
