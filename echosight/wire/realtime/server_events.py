"""The server events of everything but responses: the input buffer, items and transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from echosight import events as ev
from echosight.wire.fields import samples_to_ms
from echosight.wire.realtime.items import Codec, to_json

Json = dict[str, Any]

_BUFFER = "input_audio_buffer"
_ITEM = "conversation.item"
_TRANSCRIPTION = f"{_ITEM}.input_audio_transcription"


def to_server_events(
    event: ev.Output, codec: Codec, *, transcription_enabled: bool, report_truncation: bool
) -> Iterator[Json]:
    """The server events of an event, in GA. `codec` encodes the speech of retrieved items.

    `transcription_enabled`: the client wants transcripts. `report_truncation`: the client is also sent truncations that
    the server made by its own account of what was played.
    """
    match event:
        case ev.TranscriptUpdated() if event.transcript.final and transcription_enabled:
            yield from _transcript_events(event)
        case ev.TranscriptionFailed(item_id, code, message) if transcription_enabled:
            error = {"type": "transcription_error", "code": code, "message": message}
            yield {"type": f"{_TRANSCRIPTION}.failed", "item_id": item_id, "content_index": 0, "error": error}
        case ev.ItemAdded(item, previous_id):
            yield {"type": f"{_ITEM}.added", "previous_item_id": previous_id, "item": to_json(item)}
        case ev.ItemDone(item, previous_id):
            yield {"type": f"{_ITEM}.done", "previous_item_id": previous_id, "item": to_json(item)}
        case ev.ItemRetrieved(item):
            yield {"type": f"{_ITEM}.retrieved", "item": to_json(item, audio_codec=codec)}
        case ev.ItemRemoved(item_id):
            yield {"type": f"{_ITEM}.deleted", "item_id": item_id}
        case ev.ItemTruncated(item_id, audio_ms, _, requested) if requested or report_truncation:
            yield {"type": f"{_ITEM}.truncated", "item_id": item_id, "content_index": 0, "audio_end_ms": audio_ms}
        case _:
            yield from _input_buffer_events(event)


def _input_buffer_events(event: ev.Output) -> Iterator[Json]:
    match event:
        case ev.SpeechStarted(item_id, position):
            yield {"type": f"{_BUFFER}.speech_started", "audio_start_ms": samples_to_ms(position), "item_id": item_id}
        case ev.SpeechStopped(item_id, position):
            yield {"type": f"{_BUFFER}.speech_stopped", "audio_end_ms": samples_to_ms(position), "item_id": item_id}
        case ev.IdleTimedOut(item_id, start, end):
            span = {"audio_start_ms": samples_to_ms(start), "audio_end_ms": samples_to_ms(end)}
            yield {"type": f"{_BUFFER}.timeout_triggered", **span, "item_id": item_id}
        case ev.InputCommitted(item_id, previous_id):
            yield {"type": f"{_BUFFER}.committed", "previous_item_id": previous_id, "item_id": item_id}
        case ev.InputCleared():
            yield {"type": f"{_BUFFER}.cleared"}
        case _:
            pass


def _transcript_events(event: ev.TranscriptUpdated) -> Iterator[Json]:
    place = {"item_id": event.item_id, "content_index": 0}
    if text := event.transcript.text:
        yield {"type": f"{_TRANSCRIPTION}.delta", **place, "delta": text}
    usage = {"type": "duration", "seconds": event.audio_ms / 1000}
    yield {"type": f"{_TRANSCRIPTION}.completed", **place, "transcript": event.transcript.text, "usage": usage}
