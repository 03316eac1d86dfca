"""What a connection settles: its dialect, the session that its client configures, and the options that this changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from echosight.errors import WireError
from echosight.options import SessionChanges, SessionOptions, TurnDetectionChanges, TurnDetectionOptions
from echosight.wire.realtime import session_object
from echosight.wire.realtime.dialects import (
    BETA,
    BRIDGE,
    GA,
    Dialect,
    flatten_error,
    flatten_session,
    is_flat,
    unflatten,
)

Json = dict[str, Any]

BRIDGE_TURN = TurnDetectionOptions(
    threshold=0.65,
    min_speech_ms=120,
    min_endpointing_delay_ms=450,
    prefix_padding_ms=180,
    max_turn_ms=5_000,
    interrupt_response=False,
)
"""How turns of bridge clients are detected, once they ask for it."""

_NO_RESPONSES: TurnDetectionChanges = {"create_response": False, "interrupt_response": False}


@dataclass(frozen=True, slots=True)
class SessionTemplate:
    """What the server offers to a session, and what the connection chose before the session exists.

    `voices` are the engine's, empty where it accepts any name. `expires_at` is in Unix seconds. `bridge_turn` and
    `bridge_instructions` are the defaults of bridge clients. `transcription_only`: ``?intent=transcription``.

    With `media_sample_rate` (Hz), the speech of responses takes a WebRTC media track at this rate and not the events,
    and the server truncates unheard speech itself.
    """

    model: str = "echosight"
    voices: Collection[str] = ()
    expires_at: int = 0
    max_pixels: int = 40_000_000
    bridge_turn: TurnDetectionOptions = BRIDGE_TURN
    bridge_instructions: str = ""
    media_sample_rate: int | None = None
    transcription_only: bool = False


class Negotiation:
    """The dialect is GA, unless the connection asks for beta or the first update of the session is a flat one (bridge).

    `defaults` are the server's options, which a client comes back to: with null, with another type of turn detection,
    or with a voice that the engine does not have. `fields` is what the client sees of its session besides the options.
    """

    def __init__(self, template: SessionTemplate, defaults: SessionOptions, *, beta: bool) -> None:
        self.template = template
        self.dialect = BETA if beta else GA
        self.fields = session_object.default_session(
            template.model, defaults, template.expires_at, transcription_only=template.transcription_only
        )
        self.initial_changes: list[SessionChanges] = []
        """The changes that the connection makes to the options before its session is opened, in order."""
        self.voice_fixed = False
        """Whether the client was sent speech: from then on it cannot change the voice."""
        self._defaults = defaults
        self._dialect_fixed = beta
        if template.media_sample_rate is not None:
            self.initial_changes.append({"output_sample_rate": template.media_sample_rate})
        if template.transcription_only and defaults.turn_detection is not None:
            self.initial_changes.append({"turn_detection": _NO_RESPONSES})

    def configure(self, session: Json, *, flat: bool) -> None:
        """Configure the session before it is opened, in GA or in beta's fields. Raises `WireError`.

        The session of an ephemeral key may be of another dialect than the connection, and does not fix it.
        """
        self.fields, changes = self._apply(session, self.fields, BETA if flat else GA)
        self.initial_changes.append(changes)

    def update(self, session: Json) -> SessionChanges:
        """The changes that a session.update makes. Raises `WireError`; then the session stays as it was."""
        if self._dialect_fixed or not is_flat(session):
            self.fields, changes = self._apply(session, self.fields, self.dialect)
        else:
            fields, bridge_changes = self._bridge_session()
            self.fields, changes = self._apply(session, fields, BRIDGE)
            self.dialect = BRIDGE
            changes = {**bridge_changes, **changes}
        self._dialect_fixed = True
        return changes

    def session_json(self, session_id: str, fields: Json, options: SessionOptions) -> Json:
        """The session object before the dialect's `translate`."""
        session = session_object.session_json(session_id, fields, options)
        return session if self.dialect.flat else session_object.public_session(session)

    def created_session_json(self, session_id: str, options: SessionOptions) -> Json:
        """As long as the dialect is open, the session in GA's and beta's fields: clients ignore unknown fields."""
        public = self.session_json(session_id, self.fields, options)
        if self._dialect_fixed:
            return public
        return {**flatten_session(session_object.session_json(session_id, self.fields, options)), **public}

    def _bridge_session(self) -> tuple[Json, SessionChanges]:
        """Bridge clients commit their turns by hand, unless they ask for detection, and always want transcripts."""
        audio = self.fields["audio"]
        bridge_input = {"turn_detection": None, "transcription": {"model": "default"}}
        fields = {**self.fields, "audio": {**audio, "input": {**audio["input"], **bridge_input}}}
        changes: SessionChanges = {"turn_detection": None, "language": self._defaults.language}
        instructions = self._defaults.instructions
        for initial in self.initial_changes:
            instructions = initial.get("instructions", instructions)
        if not instructions:
            changes["instructions"] = self.template.bridge_instructions
        return fields, changes

    def _apply(self, session: Json, before: Json, dialect: Dialect) -> tuple[Json, SessionChanges]:
        """(fields, changes) after an update in this dialect. Raises `WireError` that names the dialect's own field."""
        try:
            patch = _flat_patch(session, before["type"]) if dialect.flat else session_object.parse_update(session)
            after = session_object.merge_fields(before, patch)
            if self.voice_fixed and after["audio"]["output"]["voice"] != before["audio"]["output"]["voice"]:
                raise WireError(
                    "Cannot update a conversation's voice if assistant audio is present.",
                    code="cannot_update_voice",
                    param="session.audio.output.voice",
                )
            return after, self._changes(patch, before, after, bridge=dialect is BRIDGE)
        except WireError as error:
            if not dialect.flat:
                raise
            raise flatten_error(error) from error

    def _changes(self, patch: Json, before: Json, after: Json, *, bridge: bool) -> SessionChanges:
        changes: Json = {}
        if "instructions" in patch:
            changes["instructions"] = patch["instructions"]
        if "tools" in patch:
            changes["tools"] = tuple(patch["tools"])
        if "transcription" in session_object.audio_patch(patch, "input"):
            transcription = after["audio"]["input"]["transcription"] or {}
            changes["language"] = transcription.get("language") or self._defaults.language
        if response := self._response_changes(patch):
            changes["response"] = response
        return cast(SessionChanges, changes | self._turn_changes(patch, before, after, bridge=bridge))

    def _response_changes(self, patch: Json) -> Json:
        changes: Json = {**session_object.generate_changes(patch, self.template.voices)}
        if session_object.audio_patch(patch, "output").get("voice") is not None:
            changes.setdefault("voice", self._defaults.response.voice)
        if self.template.media_sample_rate is not None:
            changes.pop("output_sample_rate", None)
        return changes

    def _turn_changes(self, patch: Json, before: Json, after: Json, *, bridge: bool) -> Json:
        """The change of ``turn_detection``, if there is one. A session that only transcribes never responds."""
        named = session_object.audio_patch(patch, "input")
        chosen = after["audio"]["input"]["turn_detection"]
        if chosen is None:
            return {"turn_detection": None} if "turn_detection" in named else {}
        defaults = self.template.bridge_turn if bridge else self._defaults.turn_detection or TurnDetectionOptions()
        changes: TurnDetectionChanges = {}
        if after["type"] != before["type"]:
            changes["create_response"] = defaults.create_response
            changes["interrupt_response"] = defaults.interrupt_response
        if "turn_detection" in named:
            previous = before["audio"]["input"]["turn_detection"]
            detection = session_object.turn_changes(named["turn_detection"], previous, chosen, defaults, bridge=bridge)
            changes = {**changes, **detection}
        if after["type"] == "transcription" and changes:
            changes = {**changes, **_NO_RESPONSES}
        return {"turn_detection": changes} if changes else {}


def _flat_patch(session: Json, session_type: str) -> Json:
    patch = unflatten(session, "session")
    temperature = patch.pop("temperature", None)
    patch = session_object.parse_update({"type": session_type, **patch})
    return patch if temperature is None else {**patch, "temperature": temperature}
