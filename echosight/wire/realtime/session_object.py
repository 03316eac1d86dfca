"""The session object: what session.update changes in it, and how clients see it.

The session has one copy of its options. A wire keeps only the fields that have no option: the model's and the voice's
names, the input format, the type of turn detection and what the client named of it, tracing and the like. Those are the
`fields` of the functions below; each shown object is made of them and of the options in force.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from echosight.options import (
    GenerateChanges,
    GenerateOptions,
    SessionOptions,
    TurnDetectionChanges,
    TurnDetectionOptions,
)
from echosight.wire.realtime import schema
from echosight.wire.realtime.items import codec_of, format_of
from echosight.wire.turn_detection import all_changes, default_changes, detection_changes, detection_json

Json = dict[str, Any]

DEFAULT_VOICE = "alloy"
PCM = "audio/pcm"
TURN_DETECTION = "session.audio.input.turn_detection"

_OPTION_FIELDS = ("output_modalities", "instructions", "tools", "tool_choice", "max_output_tokens", "temperature")
_TRANSCRIPTION_FIELDS = ("type", "object", "id", "expires_at", "include")
_NEVER_NULL = ("format", "voice", "speed", "input", "output", "audio", "model", "output_modalities")
_IF_NULL: Json = {"instructions": "", "tools": [], "tool_choice": "auto", "max_output_tokens": "inf"}


def default_session(model: str, defaults: SessionOptions, expires_at: int, *, transcription_only: bool) -> Json:
    """The fields of a session that its client has not configured yet."""
    return {
        "type": "transcription" if transcription_only else "realtime",
        "model": model,
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": format_of(PCM),
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": None if defaults.turn_detection is None else {"type": "server_vad"},
            },
            "output": {"format": format_of(PCM), "voice": defaults.response.voice or DEFAULT_VOICE},
        },
        "include": None,
    }


# --- what the client sees ---------------------------------------------------------------------------


def session_json(session_id: str, fields: Json, options: SessionOptions) -> Json:
    """The whole session object of GA. It also has ``temperature``, where that is set: only flat dialects show it."""
    response = options.response
    audio_input = fields["audio"]["input"]
    detection = detection_json(options.turn_detection, audio_input["turn_detection"] or {})
    session = {
        "type": fields["type"],
        "object": "realtime.session",
        "id": session_id,
        "model": fields["model"],
        "output_modalities": ["audio" if response.speech else "text"],
        "instructions": options.instructions,
        "tools": list(options.tools),
        "tool_choice": response.tool_choice,
        "max_output_tokens": response.max_output_tokens or "inf",
        **{name: fields[name] for name in ("tracing", "truncation", "prompt", "expires_at")},
        "audio": {
            "input": {**audio_input, "turn_detection": detection},
            "output": {**audio_output(fields, response), "speed": response.speed},
        },
        **({} if response.temperature is None else {"temperature": response.temperature}),
    }
    return session | {name: value for name, value in fields.items() if name not in session}


def audio_output(fields: Json, response: GenerateOptions) -> Json:
    """The format and the voice's name that ``audio.output`` shows for a response of this session."""
    output: Json = fields["audio"]["output"]
    encoding = response.output_format or PCM
    return output if output["format"]["type"] == encoding else {**output, "format": format_of(encoding)}


def public_session(session: Json) -> Json:
    """The session object as GA clients see it: one that only transcribes has no output."""
    if session["type"] == "realtime":
        return {name: value for name, value in session.items() if name != "temperature"}
    audio = {"input": session["audio"]["input"]}
    shown = {name: session[name] for name in _TRANSCRIPTION_FIELDS}
    return shown | {"object": "realtime.transcription_session", "audio": audio}


# --- what the client changes ------------------------------------------------------------------------


def parse_update(data: Any) -> Json:
    """The validated content of a session.update. Raises `WireError` that names the field at fault."""
    patch: Json = schema.check(schema.Session, data, "session").model_dump(exclude_unset=True)
    for name, value in _IF_NULL.items():
        if name in patch and patch[name] is None:
            patch[name] = value
    for tool in patch.get("tools", ()):
        tool["type"] = "function"
    return patch


def merge_fields(fields: Json, patch: Json) -> Json:
    """The fields after an update. Objects merge deeply, unless their ``type`` changes."""
    merged = _merge(fields, {name: value for name, value in patch.items() if name not in _OPTION_FIELDS})
    detection = audio_patch(patch, "input").get("turn_detection")
    if detection is not None:
        before = fields["audio"]["input"]["turn_detection"] or {}
        merged["audio"]["input"]["turn_detection"] = _merge_detection(before, detection)
    output = merged["audio"]["output"]
    voice = output["voice"]
    merged["audio"]["output"] = {
        "format": output["format"],
        "voice": voice["id"] if isinstance(voice, dict) else voice,
    }
    return merged


def _merge(old: Json, patch: Json) -> Json:
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in old.items()}
    for name, value in patch.items():
        before = merged.get(name)
        if isinstance(value, dict) and isinstance(before, dict) and _same_type(before, value):
            merged[name] = _merge(before, value)
        elif value is not None or name not in _NEVER_NULL:
            merged[name] = value
    return merged


def _same_type(old: Json, new: Json) -> bool:
    return bool(new.get("type", old.get("type")) == old.get("type"))


def _merge_detection(fields: Json, patch: Json) -> Json:
    """What the client has named since it chose the type; null takes a field back."""
    kind = fields.get("type", "server_vad") if patch.get("type") is None else patch["type"]
    kept = {name: value for name, value in fields.items() if name not in patch} if fields.get("type") == kind else {}
    return {**kept, **{name: value for name, value in patch.items() if value is not None}, "type": kind}


def audio_patch(patch: Json, direction: str) -> Json:
    """``audio.input`` or ``audio.output`` of an update; empty where the client names none."""
    audio: Json = patch.get("audio") or {}
    return audio.get(direction) or {}


def turn_changes(
    patch: Json, before: Json | None, after: Json, defaults: TurnDetectionOptions, *, bridge: bool
) -> TurnDetectionChanges:
    """The options that an update of ``turn_detection`` changes: all of them where the type changes, otherwise those it
    names. Null is the server's default. Raises `WireError`.

    `before` and `after` are the fields that the client has named, as `merge_fields` gives them.
    """
    if before is None or before["type"] != after["type"]:
        changes = detection_changes({"eagerness": "auto", **after}, TURN_DETECTION, bridge=bridge)
        return {**all_changes(defaults), **changes}
    named = {name: value for name, value in patch.items() if value is not None}
    if patch.get("eagerness", "") is None:
        named["eagerness"] = "auto"
    changes = detection_changes(named, TURN_DETECTION, kind=after["type"], bridge=bridge)
    return {**default_changes([name for name, value in patch.items() if value is None], defaults), **changes}


def generate_changes(patch: Json, voices: Collection[str]) -> GenerateChanges:
    """How an update of the session, or a request for one response, changes the generation.

    The voice stays where the engine does not have it: every client knows the names of the hosted service's voices.
    """
    changes: Json = {}
    output = audio_patch(patch, "output")
    if patch.get("output_modalities") is not None:
        changes["speech"] = "audio" in patch["output_modalities"]
    if (limit := patch.get("max_output_tokens")) is not None:
        changes["max_output_tokens"] = None if isinstance(limit, str) else limit
    for name in ("tool_choice", "temperature"):
        if patch.get(name) is not None:
            changes[name] = patch[name]
    if output.get("speed") is not None:
        changes["speed"] = output["speed"]
    if (voice := output.get("voice")) is not None:
        voice_name = voice["id"] if isinstance(voice, dict) else voice
        if not voices or voice_name in voices:
            changes["voice"] = voice_name
    if (audio_format := output.get("format")) is not None:
        changes["output_format"] = audio_format["type"]
        changes["output_sample_rate"] = codec_of(audio_format).rate
    return cast(GenerateChanges, changes)
