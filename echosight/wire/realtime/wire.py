"""The OpenAI Realtime protocol as a wire: client events in, server events out, in one dialect a connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

from echosight import events as ev
from echosight.conversation import Conversation, Item
from echosight.errors import WireError
from echosight.options import GenerateChanges, SessionOptions, apply_changes
from echosight.wire import Message
from echosight.wire.fields import read_json
from echosight.wire.realtime import schema
from echosight.wire.realtime.dialects import BRIDGE, flatten_error, flatten_session, unflatten
from echosight.wire.realtime.fields import (
    client_event_id,
    error_event,
    invalid_value,
    optional_str,
    require,
    require_int,
    require_ms,
    require_object,
    require_str,
)
from echosight.wire.realtime.items import Codec, codec_of, from_json
from echosight.wire.realtime.negotiation import Negotiation, SessionTemplate
from echosight.wire.realtime.replay import ReplayBuffer
from echosight.wire.realtime.responses import ResponseEvents
from echosight.wire.realtime.server_events import to_server_events
from echosight.wire.realtime.session_object import audio_output, generate_changes

Json = dict[str, Any]

MIN_COMMIT_MS = 100


class RealtimeWire:
    """One connection of a Realtime client, and those that resume it.

    `defaults` are the options that the server gives to a session; `opening_options` are those of this one. The route
    sets `conversation` to that of the session. `replay` keeps the latest events for a client that comes back.
    """

    def __init__(self, template: SessionTemplate, defaults: SessionOptions, *, beta: bool = False) -> None:
        self.client_event_id: str | None = None
        self.replay = ReplayBuffer()
        self.conversation = Conversation()
        self._defaults = defaults
        self._template = template
        self._negotiation = Negotiation(template, defaults, beta=beta)
        self._session_id = ""
        self._unconfirmed: deque[Json] = deque()
        """The session's fields after each update that the session has not answered yet."""
        self._responses: dict[str, ResponseEvents] = {}
        self._receivers: dict[str, Callable[[Json], Iterator[ev.Input]]] = {
            "session.update": self._update_session,
            "transcription_session.update": self._update_session,
            "input_audio_buffer.append": self._append_audio,
            "input_audio_buffer.commit": self._commit_audio,
            "input_audio_buffer.clear": self._clear_audio,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    # --- before the session is opened -----------------------------------------------------------

    def configure(self, session: Json, *, flat: bool = False) -> None:
        """Configure the session before it is opened, as that of an ephemeral key: in GA, or `flat` in beta's fields.

        Raises `WireError`.
        """
        self._negotiation.configure(session, flat=flat)

    def opening_options(self) -> SessionOptions:
        """The options to open the session with: the server's, with what the connection chose beforehand."""
        return reduce(apply_changes, self._negotiation.initial_changes, self._defaults)

    def session_json(self, options: SessionOptions) -> Json:
        """The session object that this connection's client sees while these options are in force."""
        session = self._negotiation.session_json(self._session_id, self._negotiation.fields, options)
        return flatten_session(session) if self._negotiation.dialect.flat else session

    # --- from the client ------------------------------------------------------------------------

    def greet(self) -> tuple[Message, ...]:
        return ()

    def receive(self, message: Message) -> Iterator[ev.Input]:
        self.client_event_id = None
        if isinstance(message, bytes):
            raise WireError("Binary frames are not supported: send JSON text frames.", code="invalid_event")
        body = read_json(message)
        if not isinstance(body, dict):
            raise WireError("The event must be a JSON object.", code="invalid_json")
        self.client_event_id = client_event_id(body)
        kind = require_str(body, "type")
        if (receiver := self._receivers.get(kind)) is None:
            supported = ", ".join(f"'{name}'" for name in self._receivers if not name.startswith("transcription"))
            raise invalid_value(f"Invalid value: '{kind}'. Supported values are: {supported}.", "type")
        return receiver(body)

    def _update_session(self, body: Json) -> Iterator[ev.Input]:
        changes = self._negotiation.update(require_object(body, "session"))
        self._unconfirmed.append(self._negotiation.fields)
        yield ev.UpdateOptions(changes)

    def _append_audio(self, body: Json) -> Iterator[ev.Input]:
        chunk = self._input_codec.read(require(body, "audio"), "audio")
        if chunk.pcm:
            yield ev.Audio(chunk)

    def _commit_audio(self, body: Json) -> Iterator[ev.Input]:
        yield ev.CommitInput(0 if self._negotiation.dialect is BRIDGE else MIN_COMMIT_MS)

    def _clear_audio(self, body: Json) -> Iterator[ev.Input]:
        yield ev.ClearInput()

    def _create_item(self, body: Json) -> Iterator[ev.Input]:
        item = self._read_item(require_object(body, "item"), "item")
        yield ev.AddItem(item, optional_str(body, "previous_item_id"))

    def _read_item(self, data: Any, path: str) -> Item:
        return from_json(data, self._input_codec, self._template.max_pixels, path)

    def _retrieve_item(self, body: Json) -> Iterator[ev.Input]:
        yield ev.RetrieveItem(require_str(body, "item_id"))

    def _delete_item(self, body: Json) -> Iterator[ev.Input]:
        yield ev.RemoveItem(require_str(body, "item_id"))

    def _truncate_item(self, body: Json) -> Iterator[ev.Input]:
        if require_int(body, "content_index") != 0:
            raise invalid_value("Invalid value for 'content_index': speech is the content at 0.", "content_index")
        yield ev.Truncate(require_str(body, "item_id"), require_ms(body, "audio_end_ms"))

    def _create_response(self, body: Json) -> Iterator[ev.Input]:
        try:
            yield self._read_request({} if body.get("response") is None else body["response"])
        except WireError as error:
            if not self._negotiation.dialect.flat:
                raise
            raise flatten_error(error) from error

    def _read_request(self, data: Any) -> ev.CreateResponse:
        temperature = None
        if self._negotiation.dialect.flat:
            data = unflatten(data, "response")
            temperature = data.pop("temperature", None)
        request = schema.check(schema.Response, data, "response")
        if self._negotiation.fields["type"] == "transcription":
            raise invalid_value("A transcription session makes no responses.", "type")
        changes = self._request_changes(request)
        if temperature is not None:
            changes["temperature"] = temperature
        items = None if request.input is None else tuple(self._read_input(request.input))
        return ev.CreateResponse(
            changes, conversation=request.conversation != "none", input=items, metadata=request.metadata
        )

    def _request_changes(self, request: schema.Response) -> GenerateChanges:
        changes = generate_changes(request.model_dump(exclude_unset=True), self._template.voices)
        if request.instructions is not None:
            changes["instructions"] = request.instructions
        if request.tools is not None:
            tools = (tool.model_dump(exclude_unset=True) | {"type": tool.type} for tool in request.tools)
            changes["tools"] = tuple(tools)
        if self._template.media_sample_rate is not None:
            changes.pop("output_format", None)
            changes.pop("output_sample_rate", None)
        return changes

    def _read_input(self, entries: list[Json]) -> Iterator[Item]:
        for index, data in enumerate(entries):
            path = f"response.input[{index}]"
            if data.get("type") != "item_reference":
                yield self._read_item(data, path)
            elif (item := self.conversation.get(str(data.get("id")))) is not None:
                yield item
            else:
                raise WireError(
                    f"Item with id '{data.get('id')}' does not exist.", code="item_not_found", param=f"{path}.id"
                )

    def _cancel_response(self, body: Json) -> Iterator[ev.Input]:
        if body.get("response_id") is None and isinstance(body.get("response"), dict):
            body = {"response_id": body["response"].get("id")}
        yield ev.Cancel(optional_str(body, "response_id"), strict=True)

    # --- to the client --------------------------------------------------------------------------

    def send(self, event: ev.Output) -> list[Message]:
        """A list, not an iterator: all messages of an event are in `replay` before the first of them is sent."""
        messages: list[Message] = []
        for server_event in self._server_events(event):
            for translated in self._negotiation.dialect.translate(server_event):
                messages.append(self.replay.add(translated))
        return messages

    def _server_events(self, event: ev.Output) -> Iterator[Json]:
        match event:
            case ev.SessionOpened(session_id, options):
                self._session_id = session_id
                session = self._negotiation.created_session_json(session_id, options)
                yield {"type": "session.created", "session": session}
            case ev.OptionsUpdated(options):
                fields = self._unconfirmed.popleft() if self._unconfirmed else self._negotiation.fields
                session = self._negotiation.session_json(self._session_id, fields, options)
                yield {"type": "session.updated", "session": session}
            case ev.ErrorRaised():
                yield error_event(event)
            case ev.ResponseStarted():
                yield self._start_response(event).created()
            case (
                ev.ItemAdded(response_id=str(response_id))
                | ev.ItemDone(response_id=str(response_id))
                | ev.TextDelta(response_id)
                | ev.SpeechDelta(response_id)
                | ev.ToolCallDelta(response_id)
                | ev.ResponseEnded(response_id)
            ) if response_id in self._responses:
                yield from self._response_events(event, self._responses[response_id])
            case _:
                report_truncation = self._template.media_sample_rate is not None
                yield from to_server_events(
                    event,
                    self._input_codec,
                    transcription_enabled=self._transcription_enabled,
                    report_truncation=report_truncation,
                )

    def _response_events(self, event: ev.Output, response: ResponseEvents) -> Iterator[Json]:
        match event:
            case ev.ItemAdded():
                yield from response.item_added(event)
            case ev.ItemDone():
                yield from response.item_done(event)
            case ev.SpeechDelta():
                self._negotiation.voice_fixed = True
                if self._template.media_sample_rate is None:
                    yield from response.delta(event)
            case ev.TextDelta() | ev.ToolCallDelta():
                yield from response.delta(event)
            case ev.ResponseEnded():
                del self._responses[event.response_id]
                yield from response.done(event)
            case _:
                pass

    def _start_response(self, event: ev.ResponseStarted) -> ResponseEvents:
        if event.conversation:
            self.replay.begin_response()
        output = audio_output(self._negotiation.fields, event.options)
        response = ResponseEvents.start(event, output, self.conversation.id)
        self._responses[event.response_id] = response
        return response

    @property
    def _input_codec(self) -> Codec:
        return codec_of(self._negotiation.fields["audio"]["input"]["format"])

    @property
    def _transcription_enabled(self) -> bool:
        fields = self._negotiation.fields
        return fields["type"] == "transcription" or fields["audio"]["input"]["transcription"] is not None
