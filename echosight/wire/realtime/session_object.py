"""The session as clients see it: one nested object that session.update merges into, and what it means for the core."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.wire.realtime import schema
from echosight.wire.realtime.items import codec_of
from echosight.wire.turn_detection import turn_options

Json = dict[str, Any]

DEFAULT_VOICE = "alloy"
PCM = {"type": "audio/pcm", "rate": 24_000}
_OF_TRANSCRIPTION = ("type", "object", "id", "expires_at", "include")
_NEVER_NULL = ("format", "voice", "speed", "input", "output", "audio", "model", "output_modalities")
TURN_DETECTION = "session.audio.input.turn_detection"


def describe(session_id: str, model: str, base: SessionOptions, expires_at: int) -> Json:
    """The session that a client finds; its choices are those of the server's settings."""
    answer = base.response
    output = {"format": PCM, "voice": answer.voice or DEFAULT_VOICE, "speed": answer.speed}
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": ["audio" if answer.speech else "text"],
        "instructions": base.instructions,
        "tools": list(base.tools),
        "tool_choice": answer.tool_choice,
        "max_output_tokens": answer.max_output_tokens or "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": PCM,
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": turn_detection(base.turn_detection),
            },
            "output": output,
        },
        "include": None,
    }


def shown(session: Json) -> Json:
    """What is shown of a session: one that only transcribes has no output."""
    if session["type"] == "realtime":
        return {key: value for key, value in session.items() if key != "temperature"}
    audio = {"input": session["audio"]["input"]}
    kept = {key: session[key] for key in _OF_TRANSCRIPTION}
    return kept | {"object": "realtime.transcription_session", "audio": audio}


def turn_detection(turn: TurnDetectionOptions | None, kind: str = "server_vad") -> Json | None:
    """``turn_detection`` with all its defaults: one client sends its own cancel where a field is missing."""
    if turn is None:
        return None
    switches = {"create_response": turn.create_response, "interrupt_response": turn.interrupt_response}
    if kind == "semantic_vad":
        return {"type": kind, "eagerness": "auto", **switches}
    return {
        "type": kind,
        "threshold": turn.threshold,
        "prefix_padding_ms": turn.prefix_padding_ms,
        "silence_duration_ms": turn.min_endpointing_delay_ms,
        "idle_timeout_ms": turn.idle_timeout_ms,
        **switches,
    }


def patch_of(data: Any) -> Json:
    """The checked content of a session.update. Raises `WireError` naming the field at fault."""
    patch: Json = schema.check(schema.Session, data, "session").model_dump(exclude_unset=True)
    for name, empty in (("instructions", ""), ("tools", []), ("tool_choice", "auto"), ("max_output_tokens", "inf")):
        if name in patch and patch[name] is None:
            patch[name] = empty
    for tool in patch.get("tools", ()):
        tool["type"] = "function"
    return patch


def merge(session: Json, patch: Json, base: TurnDetectionOptions) -> Json:
    """The session with a patch in it: objects merge deeply, unless they are of another type than before."""
    merged = _merge(session, patch)
    heard = merged["audio"]["input"]
    detection = heard["turn_detection"]
    if detection is not None:
        old = session["audio"]["input"]["turn_detection"] or {}
        kind = detection.get("type", old.get("type", "server_vad"))
        given = {key: value for key, value in detection.items() if value is not None}
        heard["turn_detection"] = {**(turn_detection(base, kind) or {}), **given}
    voice = merged["audio"]["output"]["voice"]
    if isinstance(voice, dict):
        merged["audio"]["output"]["voice"] = voice["id"]
    return merged


def _merge(old: Json, patch: Json) -> Json:
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in old.items()}
    for key, value in patch.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and _alike(before, value):
            merged[key] = _merge(before, value)
        elif value is not None or key not in _NEVER_NULL:
            merged[key] = value
    return merged


def _alike(old: Json, new: Json) -> bool:
    return bool(new.get("type", old.get("type")) == old.get("type"))


def options_of(session: Json, base: SessionOptions, voices: Collection[str], *, bridge: bool = False) -> SessionOptions:
    """What a session object means. Raises `WireError` where a choice about turns makes no sense."""
    heard, spoken = session["audio"]["input"], session["audio"]["output"]
    turn = turn_options(
        heard["turn_detection"], base.turn_detection or TurnDetectionOptions(), TURN_DETECTION, bridge=bridge
    )
    if turn is not None and session["type"] == "transcription":
        turn = replace(turn, create_response=False, interrupt_response=False)
    transcription = heard["transcription"] or {}
    return replace(
        base,
        instructions=session["instructions"],
        language=transcription.get("language") or base.language,
        tools=tuple(session["tools"]),
        turn_detection=turn,
        output_sample_rate=codec_of(spoken["format"]).rate,
        response=replace(
            base.response,
            speech="audio" in session["output_modalities"],
            voice=voice_of(spoken["voice"], base.response, voices),
            speed=spoken["speed"],
            max_output_tokens=tokens_of(session["max_output_tokens"]),
            temperature=session.get("temperature", base.response.temperature),
            tool_choice=session["tool_choice"],
        ),
    )


def response_options(response: schema.Response, options: GenerateOptions, voices: Collection[str]) -> GenerateOptions:
    """How one response is made: as the session says, but for what its request chooses. Raises `WireError`."""
    output = response.audio.output if response.audio and response.audio.output else schema.AudioOutput()
    changes: Json = {}
    if output.format is not None:
        changes["output_format"] = output.format.type
        changes["output_sample_rate"] = codec_of(output.format.model_dump()).rate
    if response.instructions is not None:
        changes["instructions"] = response.instructions
    if response.output_modalities is not None:
        changes["speech"] = "audio" in response.output_modalities
    if output.voice is not None:
        name = output.voice if isinstance(output.voice, str) else output.voice.id
        changes["voice"] = voice_of(name, options, voices)
    if output.speed is not None:
        changes["speed"] = output.speed
    if response.max_output_tokens is not None:
        changes["max_output_tokens"] = tokens_of(response.max_output_tokens)
    if response.tools is not None:
        changes["tools"] = tuple(tool.model_dump(exclude_unset=True) | {"type": tool.type} for tool in response.tools)
    if response.tool_choice is not None:
        choice = response.tool_choice
        changes["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump()
    return replace(options, **changes)


def voice_of(name: str, answer: GenerateOptions, voices: Collection[str]) -> str | None:
    """The engine's voice of that name. The hosted service's names are known to every client and to few engines:
    those are spoken in the voice that the server was started with."""
    return name if not voices or name in voices else answer.voice


def tokens_of(limit: int | str) -> int | None:
    return None if isinstance(limit, str) else limit
