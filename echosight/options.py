"""What can be chosen: how turns are found, how an answer is made, and both together for a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from echosight.media import AudioChunk


@dataclass(frozen=True, slots=True)
class TurnDetectionOptions:
    """Endpointing of the user's speech. Probabilities are Silero's, 0-1; times are in ms of the session's audio.

    Speech begins when `min_speech_ms` in a row reach `threshold`, and ends after `silence_ms` below
    `threshold - 0.15` (hysteresis). After `pause_ms` of silence the transcript is finished speculatively.
    With `patience_ms`, speech that does not sound finished is given that much silence instead. With `idle_ms`, a user
    who has said nothing for so long since the last answer was played is answered all the same.
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
"""The 0 to 3 of WebRTC's detector as thresholds of Silero's."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How one answer is made. None means: as the session or the engine has it.

    `manner` tells how to speak ("calmly, like a librarian"), for voices that take directions.

    With `lead_ms`, speech is delivered no further ahead of its own playing than that, so that a client which only
    plays what comes falls silent soon after the answer is stopped; without, as fast as it is made. `encoding` is how
    the wire is to write the speech; the core carries it and does not read it.
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


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """All that a client can choose for its session. `turn` None: turns are committed by hand.

    Answers are delivered at `output_hz`, whatever the engine speaks at. `levels` asks for the probability of
    speech of every window; `hd_video` for pictures to be looked at in full detail. Where the server records, a client
    can have itself left out with `record` False.
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
