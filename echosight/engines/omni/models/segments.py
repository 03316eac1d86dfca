"""Tokens on their way into the KV caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

SegmentKind = Literal["text", "audio", "image"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """An encoded image of `height` x `width` tokens.

    `features` (height * width, hidden) take the place of embeddings. Qwen3 adds one tensor of `deepstack`, each of the
    same shape, to the output of each of its first layers (DeepStack, Meng et al. 2024).
    """

    features: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Consecutive tokens of one role: `ids` (n), rotary `positions` (3, n) int64 in the thinker.

    The talker counts its positions from `talker_start` on. Where `ids` equal `placeholder`, `features` (placeholders,
    hidden) take the place of embeddings.
    """

    ids: tuple[int, ...]
    positions: torch.Tensor
    talker_start: int
    role: str
    kind: SegmentKind = "text"
    placeholder: int = -1
    features: torch.Tensor | None = None
    deepstack: tuple[torch.Tensor, ...] = ()
