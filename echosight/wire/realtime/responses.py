"""One answer as the service tells it: response.created, its items and their parts, response.done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from echosight import events as ev
from echosight.conversation import Item, ToolCall
from echosight.wire.realtime.items import Codec, to_json

Json = dict[str, Any]

_REASONS = ("turn_detected", "client_cancelled", "max_output_tokens", "content_filter")


@dataclass(slots=True)
class ResponseEvents:
    """What was told of an answer so far.

    `head` holds what all states of the response have in common. Items of an answer out of band are no part of the
    conversation, and are not told as such.
    """

    turn: str
    head: Json
    speech: bool
    conversation: bool
    codec: Codec
    _places: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, event: ev.ResponseStarted, output: Json, conversation_id: str, codec: Codec) -> ResponseEvents:
        options = event.options
        head = {
            "object": "realtime.response",
            "id": event.response_id,
            "conversation_id": conversation_id if event.conversation else None,
            "output_modalities": ["audio" if options.speech else "text"],
            "max_output_tokens": options.max_output_tokens or "inf",
            "audio": {"output": {"format": output["format"], "voice": options.voice or output["voice"]}},
            "metadata": _metadata(event.metadata),
        }
        return cls(event.response_id, head, options.speech, event.conversation, codec)

    def created(self) -> Json:
        return {"type": "response.created", "response": self._response("in_progress", None, [], None)}

    def added(self, event: ev.ItemAdded) -> Iterator[Json]:
        """An item begins; a message with the one part that it will have."""
        item = event.item
        place = self._places.setdefault(item.id, len(self._places))
        shown = to_json(item)
        yield {"type": "response.output_item.added", **self._at(place), "item": shown}
        if self.conversation:
            yield {"type": "conversation.item.added", "previous_item_id": event.previous_id, "item": shown}
        if not any(item.parts_of(ToolCall)):
            yield {"type": "response.content_part.added", **self._part(item.id), "part": self._content("")}

    def delta(self, event: ev.Delta) -> Iterator[Json]:
        match event:
            case ev.TextDelta(_, item_id, text):
                kind = "output_audio_transcript" if self.speech else "output_text"
                yield {"type": f"response.{kind}.delta", **self._part(item_id), "delta": text}
            case ev.SpeechDelta(_, item_id, chunk):
                if chunk.pcm:
                    sound = self.codec.write(chunk)
                    yield {"type": "response.output_audio.delta", **self._part(item_id), "delta": sound}
            case ev.ToolCallDelta(_, item_id, call_id, _, arguments):
                place = {"item_id": item_id, "call_id": call_id, **self._at(self._places[item_id])}
                yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}

    def done(self, event: ev.ItemDone) -> Iterator[Json]:
        """An item is complete, or as complete as it will be."""
        item = event.item
        place = self._at(self._places[item.id])
        shown = self._shown(item)
        for call in item.parts_of(ToolCall):
            where = {"item_id": item.id, "call_id": call.call_id, **place}
            said = {"name": call.name, "arguments": call.arguments}
            yield {"type": "response.function_call_arguments.done", **where, **said}
        if "content" in shown:
            yield from self._parts_done(item)
        if self.conversation:
            yield {"type": "conversation.item.done", "previous_item_id": event.previous_id, "item": shown}
        yield {"type": "response.output_item.done", **place, "item": shown}

    def ended(self, event: ev.ResponseEnded) -> Iterator[Json]:
        details: Json | None = None
        if event.outcome != "completed":
            details = {"type": event.outcome}
        if event.outcome == "failed":
            details = {
                "type": "failed",
                "error": {"type": "server_error", "code": event.reason, "message": event.error},
            }
        elif details is not None:
            details["reason"] = event.reason if event.reason in _REASONS else "client_cancelled"
        output = [self._shown(item) for item in event.items]
        yield {
            "type": "response.done",
            "response": self._response(event.outcome, details, output, usage_of(event.usage)),
        }
        # A server of one's own has no limits to tell of.
        yield {"type": "rate_limits.updated", "rate_limits": []}

    def _response(self, status: str, details: Json | None, output: list[Json], usage: Json | None) -> Json:
        return self.head | {"status": status, "status_details": details, "output": output, "usage": usage}

    def _parts_done(self, item: Item) -> Iterator[Json]:
        part = self._part(item.id)
        if self.speech:
            yield {"type": "response.output_audio.done", **part}
            yield {"type": "response.output_audio_transcript.done", **part, "transcript": item.text}
        else:
            yield {"type": "response.output_text.done", **part, "text": item.text}
        yield {"type": "response.content_part.done", **part, "part": self._content(item.text)}

    def _shown(self, item: Item) -> Json:
        """A message keeps the kind of content it was announced with, even if it was stopped before it was spoken."""
        shown = to_json(item)
        if "content" in shown:
            said = {"transcript": item.text} if self.speech else {"text": item.text}
            shown["content"] = [{"type": "output_audio" if self.speech else "output_text", **said}]
        return shown

    def _content(self, said: str) -> Json:
        return {"type": "audio", "transcript": said} if self.speech else {"type": "text", "text": said}

    def _at(self, place: int) -> Json:
        return {"response_id": self.turn, "output_index": place}

    def _part(self, item_id: str) -> Json:
        return {**self._at(self._places[item_id]), "item_id": item_id, "content_index": 0}


def usage_of(usage: ev.Usage) -> Json:
    read = usage.input_text + usage.input_audio + usage.input_image
    made = usage.output_text + usage.output_audio
    return {
        "total_tokens": read + made,
        "input_tokens": read,
        "output_tokens": made,
        "input_token_details": {
            "text_tokens": usage.input_text,
            "audio_tokens": usage.input_audio,
            "image_tokens": usage.input_image,
            "cached_tokens": usage.cached,
            # Engines do not tell which kind of token they had kept.
            "cached_tokens_details": {"text_tokens": usage.cached, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": usage.output_text, "audio_tokens": usage.output_audio},
    }


def _metadata(metadata: Mapping[str, Any] | None) -> Json | None:
    return None if metadata is None else dict(metadata)
