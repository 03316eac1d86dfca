"""The EchoSight dialect: acknowledgements and numbered answer records, and the socket that carries both directions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import orjson

from echosight import events as ev
from echosight.audio.formats import wav_bytes
from echosight.conversation import to_chunk
from echosight.errors import WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionOptions, TurnDetectionOptions, changes_between
from echosight.wire import Message
from echosight.wire.echosight_messages import Content, Limits, read_content, read_items, read_json
from echosight.wire.turn_detection import turn_options

MS_SAMPLES = INPUT_SAMPLE_RATE // 1000


def acknowledgement(uid: str, content: str, finish_reason: str) -> dict[str, Any]:
    """`choices` is an object here and a list in answer records: existing clients rely on both."""
    return {"id": uid, "choices": {"role": "assistant", "content": content, "finish_reason": finish_reason}}


def finish_reason(content: Content, answering: bool) -> str:
    """How /stream acknowledges a body that was taken in."""
    if content.empty:
        return ""
    if content.stop:
        return "stop"
    if not content.has_audio and not content.typed:
        return "empty audio"
    return "skip" if answering else "done"


class Records:
    """Answers as numbered records, the same over SSE and WebSocket."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self._next_id = 1

    def of(self, event: ev.Output, *, wav: bool = True) -> dict[str, Any] | None:
        """The record for an event; None where there is none. `audio` is the base64 of a WAV, null without `wav`."""
        match event:
            case ev.ResponseStarted(user_item=item):
                self._next_id = 1
                audio = item.audio if item is not None and wav else None
                said = wav_bytes(to_chunk(audio)) if audio is not None and audio.pcm else None
                return self._record("assistant:\n", "processing", said)
            case ev.TextDelta(text=text):
                return self._record(text, "processing")
            case ev.SpeechDelta(chunk=chunk):
                return self._record("", "processing", wav_bytes(chunk) if wav else None)
            case ev.ResponseEnded(outcome="failed"):
                return {"id": self.uid, "error": {"code": event.reason, "message": event.error}}
            case ev.ResponseEnded():
                reasons = {"completed": "stop", "cancelled": "interrupted", "incomplete": "length"}
                return {**self._record("\n<end>", reasons[event.outcome]), **waterfall(event)}
            case _:
                return None

    def _record(self, text: str, reason: str, wav: bytes | None = None) -> dict[str, Any]:
        audio = base64.b64encode(wav).decode() if wav is not None else None
        choice = {"role": "assistant", "audio": audio, "text": text, "finish_reason": reason}
        record = {"id": self.uid, "response_id": self._next_id, "choices": [choice]}
        self._next_id += 1
        return record


def waterfall(event: ev.ResponseEnded) -> dict[str, Any]:
    """Which parts made the answer, and when each stage was reached, in ms after the end of the user's speech."""
    stages = {k: None if v is None else round(v, 1) for k, v in asdict(event.waterfall).items()}
    return {"waterfall_ms": stages, "made_by": list(event.providers)}


class EchoSightWire:
    """One socket for both directions, once the client has subscribed.

    Text frames are bodies as for /stream, or one of the control messages ``subscribe``, ``configure``, ``stop``,
    ``commit``, ``clear``, ``reset``, ``restore`` (what was said before, to a new session) and ``played``; each is
    acknowledged, but for the last. Binary frames are mono PCM16 at the rate subscribed for.
    """

    def __init__(self, uid: str, options: SessionOptions, limits: Limits | None = None) -> None:
        self.client_event_id: str | None = None
        self._options = options
        self._limits = limits or Limits()
        self._records = Records(uid)
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
                before = self._options
                yield ev.UpdateOptions(changes_between(before, self._configure(body)))
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
                yield from content.live()
                yield ev.Sync(finish_reason(content, answering=False))
                return
        yield ev.Sync("stop" if body["type"] == "stop" else "done")

    def send(self, event: ev.Output) -> Iterator[Message]:
        match event:
            case ev.Synced(tag, answering):
                reason = "skip" if tag == "done" and answering else tag
                yield _text(acknowledgement(self._records.uid, "success", reason))
            case ev.ErrorRaised():
                yield _text({"error": event.message, "code": event.code, "param": event.param})
            case ev.SpeechDelta():
                yield from self._speech(event)
            case _:
                if (record := self._records.of(event, wav=not self._binary)) is not None:
                    if self._events and isinstance(event, ev.TextDelta):
                        record["item_id"] = event.item_id
                    yield _text(record)
                if self._events and (note := _note(event)) is not None:
                    yield _text(note)

    def _speech(self, event: ev.SpeechDelta) -> Iterator[Message]:
        record = self._records.of(event, wav=not self._binary)
        assert record is not None
        if self._events:
            record["item_id"] = event.item_id
            record["words"] = [[word.start_ms, word.text_end] for word in event.words]
        if self._binary:
            record["choices"][0]["audio"] = "binary"
        yield _text(record)
        if self._binary:
            yield event.chunk.pcm

    def _configure(self, body: dict[str, Any]) -> SessionOptions:
        """The options with what a subscribe or configure message chooses. Raises `WireError`; then nothing changes."""
        options = self._options
        rate = _choice(body, "sample_rate", int, self._rate)
        if not 4_000 <= rate <= 192_000:
            raise WireError("sample_rate must be between 4000 and 192000", param="sample_rate")
        audio = _choice(body, "audio", str, "binary" if self._binary else "wav")
        if audio not in ("wav", "binary"):
            raise WireError("audio must be 'wav' or 'binary'", param="audio")
        events = _choice(body, "events", bool, self._events)
        turn = options.turn_detection
        if "turn_detection" in body:
            turn = turn_options(body["turn_detection"], turn or TurnDetectionOptions(), echosight=True)
        answer = replace(options.response, voice=_choice(body, "voice", str, options.response.voice))
        options = replace(
            options,
            turn_detection=turn,
            response=answer,
            instructions=_choice(body, "instructions", str, options.instructions),
            language=_choice(body, "language", str, options.language),
            vad_levels=_choice(body, "levels", bool, options.vad_levels),
            record=_choice(body, "record", bool, options.record),
        )
        self._options, self._rate, self._binary, self._events = options, rate, audio == "binary", events
        return options


def _choice(body: dict[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise WireError(f"{name} must be of type {kind.__name__}", code="invalid_type", param=name)
    return value


def _text(record: dict[str, Any]) -> str:
    return orjson.dumps(record).decode()


def _note(event: ev.Output) -> dict[str, Any] | None:
    """What a subscriber with ``events`` is told beside the answer."""
    match event:
        case ev.SessionOpened(session_id):
            return {"type": "opened", "session_id": session_id}
        case ev.ResponseStarted(response_id=turn, user_item=item):
            return {"type": "turn_started", "turn": turn, "item_id": item.id if item is not None else None}
        case ev.ItemRemoved(item_id):
            return {"type": "removed", "item_id": item_id}
        case ev.SpeechStarted(item_id, at):
            return {"type": "speech_started", "item_id": item_id, "audio_ms": at // MS_SAMPLES}
        case ev.SpeechStopped(item_id, at):
            return {"type": "speech_stopped", "item_id": item_id, "audio_ms": at // MS_SAMPLES}
        case ev.TranscriptUpdated(item_id, transcript):
            return {"type": "transcript", "item_id": item_id, "text": transcript.text, "final": transcript.final}
        case ev.TranscriptionFailed(item_id, code, message):
            return {"type": "not_understood", "item_id": item_id, "code": code, "message": message}
        case ev.VadLevel(at, probability):
            return {"type": "level", "audio_ms": at // MS_SAMPLES, "probability": round(probability, 3)}
        case ev.ItemDone(item, _, turn) if turn is not None and item.status == "incomplete":
            return {"type": "truncated", "item_id": item.id, "text": item.text}
        case ev.ItemTruncated(item_id, _, text):
            return {"type": "truncated", "item_id": item_id, "text": text}
        case ev.ResponseEnded():
            return {"type": "waterfall", "turn": event.response_id, "outcome": event.outcome, **waterfall(event)}
        case _:
            return None
