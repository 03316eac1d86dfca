"""The state of one reply in the thinker and in the talker, and the sizes that bound both."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from echosight.engines.omni.vocoder import CodecFrame
from echosight.engines.runtime.sampling import Rng, SamplingParams

MAX_SPEECH_FRAMES = 4096
"""Talker steps of one reply, 82 s at 50 a second: the default of upstream's `talker_max_new_tokens`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`context_tokens`: tokens of a conversation with its reply; `batch_size`: replies that decode together."""

    context_tokens: int = 8192
    batch_size: int = 8
    speech_frames: int = MAX_SPEECH_FRAMES


@dataclass(slots=True, eq=False)
class ThinkerState:
    """A reply in the thinker. `token` was sampled and is not yet computed; `position` is its rotary position."""

    token: int
    position: int
    rng: Rng
    sampling: SamplingParams


@dataclass(slots=True, eq=False)
class TalkerState:
    """A reply in the talker. `frame_embedding` (width,) of the last frame's codes is added to the next step's input."""

    position: int
    rng: Rng
    sampling: SamplingParams
    frame_embedding: torch.Tensor
    seen_codes: torch.Tensor
    """(vocabulary,) bool: codes that the repetition penalty counts."""
    frames: list[CodecFrame] = field(default_factory=list)
    ended: bool = False
