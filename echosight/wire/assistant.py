"""The voice assistant's dialect: binary PCM16 in both directions, and JSON events about both sides' words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from echosight import events as ev
from echosight.errors import EchoSightError, InputError, WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges
from echosight.wire import Message
from echosight.wire.fields import (
    Json,
    WholeSamples,
    check_session_id,
    optional_field,
    optional_rate,
    read_json,
    write_json,
)
from echosight.wire.turn_detection import detection_changes


def session_id_of(first: Message) -> str | None:
    """The ``session_id`` of a connection's first message, where it names one. Raises `WireError`."""
    body = None if isinstance(first, bytes) else read_json(first)
    session_id = body.get("session_id") if isinstance(body, dict) else None
    return None if session_id is None else check_session_id(session_id)


class AssistantWire:
    """One connection of a voice assistant.

    The client streams its microphone without end, and the server finds the turns. ``interrupted`` tells the client to
    empty its speaker. Each response ends in exactly one ``done``.
    """

    def __init__(self) -> None:
        self.client_event_id: str | None = None
        self._rate = INPUT_SAMPLE_RATE
        self._samples = WholeSamples()
        self._state = ""

    def greet(self) -> tuple[Message, ...]:
        return ()

    # --- receiving ------------------------------------------------------------------------------

    def receive(self, message: Message) -> Iterator[ev.Input]:
        if isinstance(message, bytes):
            if pcm := self._samples.push(message):
                yield ev.Audio(AudioChunk(pcm, self._rate))
            return
        body = read_json(message)
        match body:
            case {"type": "config"}:
                yield ev.UpdateOptions(self._configure(body))
            case {"type": "stop"}:
                yield ev.Cancel()
            case {"type": "reset"}:
                self._samples.clear()
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
        rate = optional_rate(body, "sample_rate")
        output_rate = optional_rate(body, "output_rate") or rate
        changes: SessionChanges = {}
        if output_rate is not None:
            changes["output_sample_rate"] = output_rate
        if (language := optional_field(body, "language", str)) is not None:
            changes["language"] = language
        if (instructions := optional_field(body, "instructions", str)) is not None:
            changes["instructions"] = instructions
        if (voice := optional_field(body, "voice", str)) is not None:
            changes["response"] = {"voice": voice}
        if (threshold := body.get("speech_threshold")) is not None:
            changes["turn_detection"] = detection_changes({"threshold": threshold}, echosight=True)
        if rate is not None and rate != self._rate:
            self._rate = rate
            self._samples.clear()
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
