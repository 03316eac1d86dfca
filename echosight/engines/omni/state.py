"""Where an answer stands in the thinker and in the talker, and how far both may go."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from echosight.engines.omni.vocoder import IpcFrame
from echosight.engines.runtime.sampling import Rng, SamplingParams

MAX_FRAMES = 4096
"""Steps of the talker in one answer: 82 s at 50 a second. What upstream allows too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`context`: tokens of a conversation, its answer included; `answers`: how many can be decoded together."""

    context: int = 8192
    answers: int = 8
    frames: int = MAX_FRAMES


@dataclass(slots=True, eq=False)
class Thought:
    """An answer's place in the thinker: `token` was chosen and is not yet computed."""

    token: int
    position: int
    dice: Rng
    taste: SamplingParams


@dataclass(slots=True, eq=False)
class Mouth:
    """An answer's place in the talker. `carry` (hidden) is what its last frame adds to the next step's input."""

    position: int
    dice: Rng
    taste: SamplingParams
    carry: torch.Tensor
    seen: torch.Tensor
    """(vocabulary) bool: the codes that the repetition penalty counts."""
    frames: list[IpcFrame] = field(default_factory=list)
    ended: bool = False
