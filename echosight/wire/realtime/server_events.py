"""What is said, heard and changed outside of answers, as the service tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from echosight import events as ev
from echosight.media import INPUT_SAMPLE_RATE
from echosight.wire.realtime.items import Codec, to_json

Json = dict[str, Any]

_PER_MS = INPUT_SAMPLE_RATE // 1000
_BUFFER = "input_audio_buffer"
_ITEM = "conversation.item"
_TRANSCRIPTION = f"{_ITEM}.input_audio_transcription"


def tell(event: ev.Output, codec: Codec, *, transcribes: bool, cuts: bool) -> Iterator[Json]:
    """The server events of an event. `codec` writes the speech of items that were asked for.

    `transcribes`: the client wants transcripts. `cuts`: it is told of what the server cut by its own account, too.
    """
    match event:
        case ev.TranscriptUpdated() if event.transcript.final and transcribes:
            yield from _transcribed(event)
        case ev.TranscriptionFailed(item_id, code, message) if transcribes:
            error = {"type": "transcription_error", "code": code, "message": message}
            yield {"type": f"{_TRANSCRIPTION}.failed", "item_id": item_id, "content_index": 0, "error": error}
        case ev.ItemAdded(added, previous):
            yield {"type": f"{_ITEM}.added", "previous_item_id": previous, "item": to_json(added)}
        case ev.ItemDone(done, previous):
            yield {"type": f"{_ITEM}.done", "previous_item_id": previous, "item": to_json(done)}
        case ev.ItemRetrieved(found):
            yield {"type": f"{_ITEM}.retrieved", "item": to_json(found, full=codec)}
        case ev.ItemRemoved(item_id):
            yield {"type": f"{_ITEM}.deleted", "item_id": item_id}
        case ev.ItemTruncated(item_id, audio_ms, _, requested) if requested or cuts:
            yield {"type": f"{_ITEM}.truncated", "item_id": item_id, "content_index": 0, "audio_end_ms": audio_ms}
        case _:
            yield from _tell_turn(event)


def _tell_turn(event: ev.Output) -> Iterator[Json]:
    match event:
        case ev.SpeechStarted(item_id, at):
            yield {"type": f"{_BUFFER}.speech_started", "audio_start_ms": at // _PER_MS, "item_id": item_id}
        case ev.SpeechStopped(item_id, at):
            yield {"type": f"{_BUFFER}.speech_stopped", "audio_end_ms": at // _PER_MS, "item_id": item_id}
        case ev.IdleTimedOut(item_id, start, end):
            span = {"audio_start_ms": start // _PER_MS, "audio_end_ms": end // _PER_MS}
            yield {"type": f"{_BUFFER}.timeout_triggered", **span, "item_id": item_id}
        case ev.InputCommitted(item_id, previous):
            yield {"type": f"{_BUFFER}.committed", "previous_item_id": previous, "item_id": item_id}
        case ev.InputCleared():
            yield {"type": f"{_BUFFER}.cleared"}
        case _:
            pass


def _transcribed(event: ev.TranscriptUpdated) -> Iterator[Json]:
    place = {"item_id": event.item_id, "content_index": 0}
    if text := event.transcript.text:
        yield {"type": f"{_TRANSCRIPTION}.delta", **place, "delta": text}
    usage = {"type": "duration", "seconds": event.audio_ms / 1000}
    yield {"type": f"{_TRANSCRIPTION}.completed", **place, "transcript": event.transcript.text, "usage": usage}
