"""The voice assistant's dialect: binary PCM16 in both directions, and JSON events about both sides' words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from echosight import events as ev
from echosight.audio.resampling import MAX_HZ, MIN_HZ
from echosight.errors import EchoSightError, InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges
from echosight.wire import Message
from echosight.wire.fields import Json, read_json, write_json
from echosight.wire.turn_detection import detection_changes

MAX_SESSION_ID_CHARS = 256


def session_id_of(first: Message) -> str | None:
    """The ``session_id`` of a connection's first message, where it names one. Raises `WireError`."""
    body = None if isinstance(first, bytes) else read_json(first)
    session_id = body.get("session_id") if isinstance(body, dict) else None
    if session_id is not None and not (isinstance(session_id, str) and 1 <= len(session_id) <= MAX_SESSION_ID_CHARS):
        raise WireError(f"session_id must be a string of 1 to {MAX_SESSION_ID_CHARS} characters", param="session_id")
    return session_id


class AssistantWire:
    """One connection of a voice assistant.

    The client streams its microphone without end, and the server finds the turns. ``interrupted`` tells the client to
    empty its speaker. Each response ends in exactly one ``done``.
    """

    def __init__(self) -> None:
        self.client_event_id: str | None = None
        self._rate = INPUT_SAMPLE_RATE
        self._half_sample = b""
        self._state = ""

    def greet(self) -> tuple[Message, ...]:
        return ()

    # --- receiving ------------------------------------------------------------------------------

    def receive(self, message: Message) -> Iterator[ev.Input]:
        if isinstance(message, bytes):
            data = self._half_sample + message
            pcm = data[: len(data) // 2 * 2]
            self._half_sample = data[len(pcm) :]
            if pcm:
                yield ev.Audio(AudioChunk(pcm, self._rate))
            return
        body = read_json(message)
        match body:
            case {"type": "config"}:
                yield ev.UpdateOptions(self._configure(body))
            case {"type": "stop"}:
                yield ev.Cancel()
            case {"type": "reset"}:
                self._half_sample = b""
                yield ev.Reset()
                yield ev.Sync("reset")
            case {"type": "playback", "item_id": str(item_id), "played_ms": int(ms)} if ms >= 0 and ms is not True:
                yield ev.PlaybackProgress(item_id, ms)
            case {"type": "playback"}:
                raise WireError("playback must hold item_id and played_ms, a whole number from 0", param="played_ms")
            case {"type": str(kind)}:
                raise WireError(
                    f"Unknown message type {kind[:40]!r}; send config, stop, reset or playback",
                    code="unknown_type",
                    param="type",
                )
            case _:
                raise WireError("A message is binary PCM16 or a JSON object with a type", param="type")

    def _configure(self, body: Json) -> SessionChanges:
        """The changes that ``config`` makes. Raises `WireError`; then nothing changes."""
        if body.get("mode", "assistant") != "assistant":
            raise WireError("The mode of a connection cannot change; open another one", param="mode")
        if body.get("encoding", "pcm16") != "pcm16":
            raise WireError("encoding must be 'pcm16'", param="encoding")
        rate = _rate(body, "sample_rate")
        output_rate = _rate(body, "output_rate") or rate
        changes: SessionChanges = {}
        if output_rate is not None:
            changes["output_sample_rate"] = output_rate
        if (language := _optional(body, "language", str)) is not None:
            changes["language"] = language
        if (instructions := _optional(body, "instructions", str)) is not None:
            changes["instructions"] = instructions
        if (voice := _optional(body, "voice", str)) is not None:
            changes["response"] = {"voice": voice}
        if (threshold := body.get("speech_threshold")) is not None:
            changes["turn_detection"] = detection_changes({"threshold": threshold}, echosight=True)
        if rate is not None and rate != self._rate:
            self._rate, self._half_sample = rate, b""
        return changes

    # --- sending --------------------------------------------------------------------------------

    def send(self, event: ev.Output) -> Iterator[Message]:
        match event:
            case ev.OptionsUpdated(options):
                yield write_json(
                    {
                        "type": "config",
                        "sample_rate": self._rate,
                        "output_rate": options.output_sample_rate,
                        "language": options.language,
                        "voice": options.response.voice,
                    }
                )
            case ev.SpeechStarted(item_id):
                yield write_json({"type": "listening", "item_id": item_id})
                yield from self._enter("listening")
            case ev.SpeechStopped() | ev.ResponseStarted():
                yield from self._enter("thinking")
            case ev.TranscriptUpdated(item_id, transcript):
                yield write_json(
                    {"type": "transcript", "item_id": item_id, "text": transcript.text, "final": transcript.final}
                )
            case ev.TextDelta(response_id, item_id, text):
                yield write_json({"type": "response", "response_id": response_id, "item_id": item_id, "text": text})
            case ev.SpeechDelta(item_id=item_id, chunk=chunk) if chunk.pcm:
                yield from self._enter("speaking", item_id=item_id)
                yield chunk.pcm
            case ev.ItemTruncated(item_id, audio_ms, text, False):
                yield _interrupted(item_id, text, audio_ms)
            case ev.ResponseEnded():
                yield from self._end_response(event)
            case ev.ErrorRaised():
                yield write_json(_error(event.code, event.message, event.param))
            case ev.Synced("reset"):
                yield write_json({"type": "reset"})
                yield from self._enter("idle")
            case _:
                pass

    def _enter(self, state: str, **fields: str) -> Iterator[str]:
        if state != self._state:
            self._state = state
            yield write_json({"type": "state", "state": state, **fields})

    def _end_response(self, event: ev.ResponseEnded) -> Iterator[str]:
        if event.outcome == "failed":
            yield write_json(_error(event.reason or "engine_failed", event.error or "The response failed"))
        elif event.outcome == "cancelled" and event.items:
            item = event.items[0]
            yield _interrupted(item.id, item.text, item.audio.duration_ms if item.audio is not None else 0)
        yield write_json(
            {
                "type": "done",
                "response_id": event.response_id,
                "outcome": event.outcome,
                "reason": event.reason,
                "stages_ms": {k: None if v is None else round(v, 1) for k, v in asdict(event.waterfall).items()},
            }
        )
        if self._state != "listening":  # the user's next turn may have begun
            yield from self._enter("idle")


def _interrupted(item_id: str, text: str, played_ms: int) -> str:
    """The client has to empty its speaker; `text` is what was heard of the response."""
    return write_json({"type": "interrupted", "item_id": item_id, "text": text, "played_ms": played_ms})


def _error(code: str, message: str, param: str | None = None) -> Json:
    return {"type": "error", "code": code, "message": message, "param": param}


def error_message(error: EchoSightError) -> str:
    """An error that closes the connection."""
    return write_json(_error(error.code, error.message, error.param if isinstance(error, InputError) else None))


def _rate(body: Json, name: str) -> int | None:
    rate: int | None = _optional(body, name, int)
    if rate is not None and not MIN_HZ <= rate <= MAX_HZ:
        raise WireError(f"{name} must be between {MIN_HZ} and {MAX_HZ}", param=name)
    return rate


def _optional(body: Json, name: str, kind: type[Any]) -> Any:
    value = body.get(name)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise WireError(f"{name} must be of type {kind.__name__}", code="invalid_type", param=name)
    return value
