"""The server events of one response: response.created, its items and their parts, response.done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from echosight import events as ev
from echosight.conversation import Item, ToolCall
from echosight.wire.realtime.items import Codec, codec_of, to_json

Json = dict[str, Any]

_REASONS = ("turn_detected", "client_cancelled", "max_output_tokens", "content_filter")


@dataclass(slots=True)
class ResponseEvents:
    """The server events of one response, in GA.

    `common` holds the fields that all states of the response object share. The items of a response out of band are no
    part of the conversation, so they have no ``conversation.item`` events.
    """

    response_id: str
    common: Json
    speech: bool
    conversation: bool
    codec: Codec
    _output_indexes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def start(cls, event: ev.ResponseStarted, output: Json, conversation_id: str) -> ResponseEvents:
        """`output` is the session's ``audio.output``, with the format of this response."""
        options = event.options
        common = {
            "object": "realtime.response",
            "id": event.response_id,
            "conversation_id": conversation_id if event.conversation else None,
            "output_modalities": ["audio" if options.speech else "text"],
            "max_output_tokens": options.max_output_tokens or "inf",
            "audio": {"output": {"format": output["format"], "voice": options.voice or output["voice"]}},
            "metadata": None if event.metadata is None else dict(event.metadata),
        }
        return cls(event.response_id, common, options.speech, event.conversation, codec_of(output["format"]))

    def created(self) -> Json:
        return {"type": "response.created", "response": self._response("in_progress", None, [], None)}

    def item_added(self, event: ev.ItemAdded) -> Iterator[Json]:
        """The beginning of an item; of a message, also of the one part that it will have."""
        item = event.item
        payload = to_json(item)
        yield {"type": "response.output_item.added", **self._item_fields(item.id), "item": payload}
        if self.conversation:
            yield {"type": "conversation.item.added", "previous_item_id": event.previous_id, "item": payload}
        if not any(item.parts_of(ToolCall)):
            yield {"type": "response.content_part.added", **self._part_fields(item.id), "part": self._part("")}

    def delta(self, event: ev.Delta) -> Iterator[Json]:
        match event:
            case ev.TextDelta(_, item_id, text):
                kind = "output_audio_transcript" if self.speech else "output_text"
                yield {"type": f"response.{kind}.delta", **self._part_fields(item_id), "delta": text}
            case ev.SpeechDelta(_, item_id, chunk):
                if chunk.pcm:
                    audio = self.codec.write(chunk)
                    yield {"type": "response.output_audio.delta", **self._part_fields(item_id), "delta": audio}
            case ev.ToolCallDelta(_, item_id, call_id, _, arguments):
                fields = {"item_id": item_id, "call_id": call_id, **self._item_fields(item_id)}
                yield {"type": "response.function_call_arguments.delta", **fields, "delta": arguments}

    def item_done(self, event: ev.ItemDone) -> Iterator[Json]:
        """The end of an item that is complete, or was cut off."""
        item = event.item
        fields = self._item_fields(item.id)
        payload = self._item(item)
        for call in item.parts_of(ToolCall):
            ids = {"item_id": item.id, "call_id": call.call_id, **fields}
            function = {"name": call.name, "arguments": call.arguments}
            yield {"type": "response.function_call_arguments.done", **ids, **function}
        if "content" in payload:
            yield from self._parts_done(item)
        if self.conversation:
            yield {"type": "conversation.item.done", "previous_item_id": event.previous_id, "item": payload}
        yield {"type": "response.output_item.done", **fields, "item": payload}

    def done(self, event: ev.ResponseEnded) -> Iterator[Json]:
        details: Json | None = None
        if event.outcome == "failed":
            error = {"type": "server_error", "code": event.reason, "message": event.error}
            details = {"type": "failed", "error": error}
        elif event.outcome != "completed":
            reason = event.reason if event.reason in _REASONS else "client_cancelled"
            details = {"type": event.outcome, "reason": reason}
        output = [self._item(item) for item in event.items]
        response = self._response(event.outcome, details, output, usage_of(event.usage))
        yield {"type": "response.done", "response": response}
        # A self-hosted server has no rate limits, but clients wait for this event.
        yield {"type": "rate_limits.updated", "rate_limits": []}

    def _response(self, status: str, details: Json | None, output: list[Json], usage: Json | None) -> Json:
        return self.common | {"status": status, "status_details": details, "output": output, "usage": usage}

    def _parts_done(self, item: Item) -> Iterator[Json]:
        fields = self._part_fields(item.id)
        if self.speech:
            yield {"type": "response.output_audio.done", **fields}
            yield {"type": "response.output_audio_transcript.done", **fields, "transcript": item.text}
        else:
            yield {"type": "response.output_text.done", **fields, "text": item.text}
        yield {"type": "response.content_part.done", **fields, "part": self._part(item.text)}

    def _item(self, item: Item) -> Json:
        """A message keeps the content type of its first event, also where it was stopped before any speech."""
        payload = to_json(item)
        if "content" in payload:
            content = {"transcript": item.text} if self.speech else {"text": item.text}
            payload["content"] = [{"type": "output_audio" if self.speech else "output_text", **content}]
        return payload

    def _part(self, text: str) -> Json:
        return {"type": "audio", "transcript": text} if self.speech else {"type": "text", "text": text}

    def _item_fields(self, item_id: str) -> Json:
        output_index = self._output_indexes.setdefault(item_id, len(self._output_indexes))
        return {"response_id": self.response_id, "output_index": output_index}

    def _part_fields(self, item_id: str) -> Json:
        return {**self._item_fields(item_id), "item_id": item_id, "content_index": 0}


def usage_of(usage: ev.Usage) -> Json:
    """The ``usage`` object of a response."""
    input_tokens = usage.input_text + usage.input_audio + usage.input_image
    output_tokens = usage.output_text + usage.output_audio
    return {
        "total_tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_text,
            "audio_tokens": usage.input_audio,
            "image_tokens": usage.input_image,
            "cached_tokens": usage.cached,
            # Engines do not report the kinds of cached tokens.
            "cached_tokens_details": {"text_tokens": usage.cached, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": usage.output_text, "audio_tokens": usage.output_audio},
    }
