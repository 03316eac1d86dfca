"""The OpenAI Realtime protocol as a wire: client events in, server events out, in one dialect a connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from echosight import events as ev
from echosight.conversation import Conversation, Item
from echosight.errors import WireError
from echosight.options import SessionOptions, TurnDetectionOptions, changes_between
from echosight.wire import Message
from echosight.wire.echosight_messages import read_json
from echosight.wire.realtime import schema, session_object
from echosight.wire.realtime.dialects import BETA, BRIDGE, GA, flat_session, in_flat_words, is_flat, nested
from echosight.wire.realtime.fields import (
    error_event,
    index_of,
    invalid,
    ms_of,
    object_of,
    reference_of,
    required,
    text_of,
)
from echosight.wire.realtime.items import codec_of, format_of, from_json
from echosight.wire.realtime.replay import ReplayBuffer
from echosight.wire.realtime.responses import ResponseEvents
from echosight.wire.realtime.server_events import tell

Json = dict[str, Any]

MIN_COMMIT_MS = 100

BRIDGE_TURN = TurnDetectionOptions(
    threshold=0.65,
    min_speech_ms=120,
    min_endpointing_delay_ms=450,
    prefix_padding_ms=180,
    max_turn_ms=5_000,
    interrupt_response=False,
)
"""How the bridge finds turns, once it is asked to."""


@dataclass(frozen=True, slots=True)
class SessionTemplate:
    """What the server offers a session, and what it was asked for before it began."""

    model: str = "echosight"
    voices: Collection[str] = ()
    expires_at: int = 0
    max_pixels: int = 40_000_000
    bridge_turn: TurnDetectionOptions = BRIDGE_TURN
    bridge_instructions: str = ""
    speech_hz: int | None = None
    """Speech takes another way than the events, at this rate; what was not heard of it is cut unasked."""
    transcribes: bool = False
    """The session only transcribes (``?intent=transcription``)."""


class RealtimeWire:
    """GA until told otherwise: beta where the connection asks for it, the bridge where the first update is flat.

    `options` are what the session has now, `conversation` is what is said in it. Every event that was sent is kept
    for a while, for a client that comes back: `log.since(event_id)`.
    """

    def __init__(self, terms: SessionTemplate, options: SessionOptions, *, beta: bool = False) -> None:
        self.client_event_id: str | None = None
        self.options = options
        self.log = ReplayBuffer()
        self.conversation = Conversation()
        self._terms = terms
        self._base = options
        self._dialect = BETA if beta else GA
        self._decided = beta
        self._session = session_object.describe("", terms.model, options, terms.expires_at)
        if terms.transcribes or terms.speech_hz:
            self._adopt({**self._session, "type": "transcription" if terms.transcribes else "realtime"})
        self._confirmations: deque[Json] = deque()
        self._replies: dict[str, ResponseEvents] = {}
        self._spoke = False
        self._receivers: dict[str, Callable[[Json], Iterator[ev.Input]]] = {
            "session.update": self._update,
            "transcription_session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._respond,
            "response.cancel": self._cancel,
        }

    @property
    def session(self) -> Json:
        """The session as this connection's client sees it."""
        return flat_session(self._session) if self._dialect.flat else session_object.shown(self._session)

    def configure(self, session: Json, *, flat: bool = False) -> None:
        """Choose beforehand, as the session of an ephemeral key does; `flat`, in beta's words. Raises `WireError`."""
        dialect, decided = self._dialect, self._decided
        self._dialect, self._decided = BETA if flat else GA, True
        try:
            for _ in self._update({"session": session}):
                self._confirmations.clear()
        finally:
            self._dialect, self._decided = dialect, decided

    # --- what the client says -------------------------------------------------------------------

    def greet(self) -> tuple[Message, ...]:
        return ()

    def receive(self, message: Message) -> Iterator[ev.Input]:
        self.client_event_id = None
        if isinstance(message, bytes):
            raise WireError("Binary frames are not supported: send JSON text frames.", code="invalid_event")
        body = read_json(message)
        if not isinstance(body, dict):
            raise WireError("The event must be a JSON object.", code="invalid_json")
        self.client_event_id = reference_of(body)
        kind = text_of(body, "type")
        if (receiver := self._receivers.get(kind)) is None:
            supported = ", ".join(f"'{name}'" for name in self._receivers if not name.startswith("transcription"))
            raise invalid(f"Invalid value: '{kind}'. Supported values are: {supported}.", "type")
        return receiver(body)

    def _update(self, body: Json) -> Iterator[ev.Input]:
        given = object_of(body, "session")
        before, options = (self._dialect, self._base, self._session), self.options
        try:
            if not self._decided and is_flat(given):
                self._become_bridge()
            patch = self._flat_patch(given) if self._dialect.flat else session_object.patch_of(given)
            merged = session_object.merge(self._session, patch, self._base.turn_detection or TurnDetectionOptions())
            self._check_voice(merged)
            self._adopt(merged)
        except WireError as error:
            told = in_flat_words(error) if self._dialect.flat else error
            self._dialect, self._base, self._session = before
            raise told from error
        self._decided = True
        self._confirmations.append(self._told)
        yield ev.UpdateOptions(changes_between(options, self.options))

    def _flat_patch(self, given: Json) -> Json:
        patch = nested(given, "session")
        temperature = patch.pop("temperature", None)
        patch = session_object.patch_of({"type": self._session["type"], **patch})
        return patch if temperature is None else {**patch, "temperature": temperature}

    def _adopt(self, session: Json) -> None:
        bridge = self._dialect is BRIDGE
        options = session_object.options_of(session, self._base, self._terms.voices, bridge=bridge)
        self.options = replace(options, output_sample_rate=self._terms.speech_hz or options.output_sample_rate)
        self._session = session

    def _become_bridge(self) -> None:
        """The bridge finds no turns until it is asked to, and always transcribes."""
        self._dialect = BRIDGE
        self._base = replace(self._base, turn_detection=self._terms.bridge_turn)
        heard = {**self._session["audio"]["input"], "turn_detection": None, "transcription": {"model": "default"}}
        instructions = self._session["instructions"] or self._terms.bridge_instructions
        audio = {**self._session["audio"], "input": heard}
        self._session = {**self._session, "audio": audio, "instructions": instructions}

    def _check_voice(self, merged: Json) -> None:
        if self._spoke and merged["audio"]["output"]["voice"] != self._session["audio"]["output"]["voice"]:
            raise WireError(
                "Cannot update a conversation's voice if assistant audio is present.",
                code="cannot_update_voice",
                param="session.voice" if self._dialect.flat else "session.audio.output.voice",
            )

    def _append(self, body: Json) -> Iterator[ev.Input]:
        required(body, "audio")
        chunk = codec_of(self._session["audio"]["input"]["format"]).read(body["audio"], "audio")
        if chunk.pcm:
            yield ev.Audio(chunk)

    def _commit(self, body: Json) -> Iterator[ev.Input]:
        yield ev.CommitInput(0 if self._dialect is BRIDGE else MIN_COMMIT_MS)

    def _clear(self, body: Json) -> Iterator[ev.Input]:
        yield ev.ClearInput()

    def _create_item(self, body: Json) -> Iterator[ev.Input]:
        item = self._item(object_of(body, "item"), "item")
        after = body.get("previous_item_id")
        if after is not None and not isinstance(after, str):
            raise WireError("Invalid type for 'previous_item_id'.", code="invalid_type", param="previous_item_id")
        yield ev.AddItem(item, after)

    def _item(self, data: Any, place: str) -> Item:
        codec = codec_of(self._session["audio"]["input"]["format"])
        return from_json(data, codec, self._terms.max_pixels, place)

    def _retrieve_item(self, body: Json) -> Iterator[ev.Input]:
        yield ev.RetrieveItem(text_of(body, "item_id"))

    def _delete_item(self, body: Json) -> Iterator[ev.Input]:
        yield ev.RemoveItem(text_of(body, "item_id"))

    def _truncate_item(self, body: Json) -> Iterator[ev.Input]:
        if index_of(body, "content_index") != 0:
            raise invalid("Invalid value for 'content_index': speech is the content at 0.", "content_index")
        yield ev.Truncate(text_of(body, "item_id"), ms_of(body, "audio_end_ms"))

    def _respond(self, body: Json) -> Iterator[ev.Input]:
        try:
            yield self._request({} if body.get("response") is None else body["response"])
        except WireError as error:
            raise (in_flat_words(error) if self._dialect.flat else error) from error

    def _request(self, given: Any) -> ev.CreateResponse:
        temperature = None
        if self._dialect.flat:
            given = nested(given, "response")
            temperature = given.pop("temperature", None)
        response = schema.check(schema.Response, given, "response")
        if self._session["type"] == "transcription":
            raise invalid("A transcription session makes no responses.", "type")
        options = session_object.response_options(response, self.options.response, self._terms.voices)
        if self._terms.speech_hz:
            options = replace(options, output_format=None, output_sample_rate=None)
        if temperature is not None:
            options = replace(options, temperature=temperature)
        items = None if response.input is None else tuple(self._inputs(response.input))
        return ev.CreateResponse(
            options, conversation=response.conversation != "none", input=items, metadata=response.metadata
        )

    def _inputs(self, given: list[Json]) -> Iterator[Item]:
        for at, data in enumerate(given):
            place = f"response.input[{at}]"
            if data.get("type") != "item_reference":
                yield self._item(data, place)
            elif (item := self.conversation.get(str(data.get("id")))) is not None:
                yield item
            else:
                raise WireError(
                    f"Item with id '{data.get('id')}' does not exist.", code="item_not_found", param=f"{place}.id"
                )

    def _cancel(self, body: Json) -> Iterator[ev.Input]:
        turn = body.get("response_id")
        if turn is None and isinstance(body.get("response"), dict):
            turn = body["response"].get("id")
        if turn is not None and not isinstance(turn, str):
            raise WireError("Invalid type for 'response_id'.", code="invalid_type", param="response_id")
        yield ev.Cancel(turn, strict=True)

    # --- what the client is told ----------------------------------------------------------------

    def send(self, event: ev.Output) -> list[Message]:
        """A list, not an iterator: what was taken from the outbox is in the log before any of it is sent."""
        messages: list[Message] = []
        for told in self._tell(event):
            for translated in self._dialect.translate(told):
                messages.append(self.log.add(translated))
        return messages

    def _tell(self, event: ev.Output) -> Iterator[Json]:
        match event:
            case ev.SessionOpened(session_id):
                self._session["id"] = session_id
                yield {"type": "session.created", "session": self._introduction()}
            case ev.OptionsUpdated():
                session = self._confirmations.popleft() if self._confirmations else self._told
                yield {"type": "session.updated", "session": session}
            case ev.ErrorRaised():
                yield error_event(event)
            case ev.ItemAdded(response_id=str(turn)) if turn in self._replies:
                yield from self._replies[turn].added(event)
            case ev.ItemDone(response_id=str(turn)) if turn in self._replies:
                yield from self._replies[turn].done(event)
            case ev.ResponseStarted():
                yield self._begin(event).created()
            case ev.TextDelta(turn) | ev.SpeechDelta(turn) | ev.ToolCallDelta(turn):
                self._spoke = self._spoke or isinstance(event, ev.SpeechDelta)
                if not (self._terms.speech_hz and isinstance(event, ev.SpeechDelta)):
                    yield from self._replies[turn].delta(event)
            case ev.ResponseEnded(turn):
                yield from self._replies.pop(turn).ended(event)
            case _:
                codec = codec_of(self._session["audio"]["input"]["format"])
                yield from tell(event, codec, transcribes=self._transcribes, cuts=bool(self._terms.speech_hz))

    def _introduction(self) -> Json:
        """Before the dialect is chosen, the session in both forms; clients pass over what they do not know."""
        return self._told if self._decided else {**flat_session(self._session), **self._told}

    @property
    def _told(self) -> Json:
        """The session before it is translated."""
        return self._session if self._dialect.flat else session_object.shown(self._session)

    def _begin(self, event: ev.ResponseStarted) -> ResponseEvents:
        if event.conversation:
            self.log.begin_answer()
        output = self._session["audio"]["output"]
        if event.options.output_format is not None:
            output = {**output, "format": format_of(event.options.output_format)}
        reply = ResponseEvents.begin(event, output, self.conversation.id, codec_of(output["format"]))
        self._replies[event.response_id] = reply
        return reply

    @property
    def _transcribes(self) -> bool:
        return self._session["type"] == "transcription" or self._session["audio"]["input"]["transcription"] is not None
