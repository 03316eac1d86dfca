"""What can be chosen: how turns are detected, how a response is made, and both together for a session.

A client changes single fields: `SessionChanges` names them, and only the session applies them to its `SessionOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from echosight.media import AudioChunk

__all__ = [
    "AGGRESSIVENESS",
    "GenerateChanges",
    "GenerateOptions",
    "SessionChanges",
    "SessionOptions",
    "TurnDetectionChanges",
    "TurnDetectionOptions",
    "apply_changes",
]


@dataclass(frozen=True, slots=True)
class TurnDetectionOptions:
    """Endpointing of the user's speech. Probabilities are Silero's, 0-1; times are in ms of the session's audio.

    Speech begins when `min_speech_ms` in a row reach `threshold`. It ends after `min_endpointing_delay_ms` below
    `threshold - 0.15` (hysteresis), or after `max_endpointing_delay_ms` where that is set and the text does not sound
    complete. After `speculation_delay_ms` of silence the transcript is finished speculatively. `max_turn_ms` ends a
    turn without silence. After `idle_timeout_ms` without speech since the last response was played, the model is asked
    to respond to the silence.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    min_speech_ms: int = 64
    min_endpointing_delay_ms: int = 384
    speculation_delay_ms: int = 160
    max_turn_ms: int = 60_000
    create_response: bool = True
    interrupt_response: bool = True
    max_endpointing_delay_ms: int = 0
    idle_timeout_ms: int | None = None


AGGRESSIVENESS = (0.35, 0.5, 0.65, 0.8)
"""The levels 0 to 3 of WebRTC's detector, as thresholds of Silero's probability."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How one response is made. None means: as the session or the engine has it.

    `speaking_style` directs the voice ("calmly, like a librarian") where the TTS takes directions. `speed` is a factor.

    With `max_playout_lead_ms`, speech is delivered no further ahead of its own playing than that, so a client that only
    plays what arrives falls silent soon after the response is cancelled; with None, as fast as it is made.
    `output_format` names the wire's encoding of the speech; the core carries it and does not read it.

    `reply_schema` is the JSON Schema that the text shall follow. Models that cannot be held to it ignore it, so the
    instructions must ask for the same. With `require_images`, a model that takes no images raises `CannotSee` instead
    of leaving them out.
    """

    instructions: str | None = None
    speech: bool = True
    voice: str | None = None
    voice_sample: AudioChunk | None = None
    language: str | None = None
    speed: float = 1.0
    speaking_style: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    max_playout_lead_ms: int | None = None
    output_sample_rate: int | None = None
    output_format: str | None = None
    reply_schema: dict[str, Any] | None = None
    require_images: bool = False


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Everything that a client can choose for its session.

    `turn_detection` None: the client commits its turns by hand. Speech is delivered at `output_sample_rate` (Hz),
    whatever the engine speaks at. `vad_levels` sends the probability of speech of every window, `hd_video` has images
    looked at in full detail. Where the server records, `record` False leaves this session out.
    """

    instructions: str = ""
    language: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    turn_detection: TurnDetectionOptions | None = field(default_factory=TurnDetectionOptions)
    response: GenerateOptions = field(default_factory=GenerateOptions)
    output_sample_rate: int = 24_000
    vad_levels: bool = False
    hd_video: bool = False
    record: bool = True


class TurnDetectionChanges(TypedDict, total=False):
    """Fields of `TurnDetectionOptions` that a client changes."""

    threshold: float
    prefix_padding_ms: int
    min_speech_ms: int
    min_endpointing_delay_ms: int
    speculation_delay_ms: int
    max_turn_ms: int
    create_response: bool
    interrupt_response: bool
    max_endpointing_delay_ms: int
    idle_timeout_ms: int | None


class GenerateChanges(TypedDict, total=False):
    """Fields of `GenerateOptions` that a client changes for its session."""

    instructions: str | None
    speech: bool
    voice: str | None
    voice_sample: AudioChunk | None
    language: str | None
    speed: float
    speaking_style: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    tools: tuple[dict[str, Any], ...] | None
    tool_choice: str | dict[str, Any]
    max_playout_lead_ms: int | None
    output_sample_rate: int | None
    output_format: str | None
    reply_schema: dict[str, Any] | None
    require_images: bool


class SessionChanges(TypedDict, total=False):
    """Fields of `SessionOptions` that a client changes; `turn_detection` None switches to turns committed by hand."""

    instructions: str
    language: str | None
    tools: tuple[dict[str, Any], ...]
    turn_detection: TurnDetectionChanges | None
    response: GenerateChanges
    output_sample_rate: int
    vad_levels: bool
    hd_video: bool
    record: bool


def apply_changes(
    options: SessionOptions, changes: SessionChanges, turn_detection: TurnDetectionOptions | None = None
) -> SessionOptions:
    """`options` with `changes` in them; `turn_detection` is what changes build on where detection was switched off."""
    values: dict[str, Any] = {**changes}
    if "response" in changes:
        values["response"] = replace(options.response, **changes["response"])
    if (detection := changes.get("turn_detection")) is not None:
        base = options.turn_detection or turn_detection or TurnDetectionOptions()
        values["turn_detection"] = replace(base, **detection)
    return replace(options, **values)
