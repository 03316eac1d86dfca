"""Vocoders: codec frames to samples while the frames still come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

CodecFrame = tuple[int, ...]
"""The codes of one step of the talker: one (Qwen2.5), or one for each codebook (Qwen3)."""


class Vocoder(Protocol):
    """Turns the codec frames of one reply into samples at 24 kHz."""

    def push(self, frames: Sequence[CodecFrame], *, final: bool) -> list[torch.Tensor]:
        """`frames` are all frames so far, `final` means that there are no more.

        Returns the new chunks of samples, each (n,) float in [-1, 1] on the model's device.
        """
