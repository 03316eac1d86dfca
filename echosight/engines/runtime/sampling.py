"""Sampling of tokens for a batch of replies; each row has its own parameters and its own random numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

MAX_CANDIDATES = 256
"""Most likely tokens that are considered. All others together are less likely than the share that `top_p` cuts."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one reply are sampled.

    `temperature` 0 always takes the most likely token. `top_p` in (0, 1] keeps the smallest set of tokens with that
    probability; `top_k` keeps that many tokens, 0 means `MAX_CANDIDATES`. `repetition_penalty` 1 changes nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, config: Any) -> SamplingParams:
        """The makers' recommendation in a transformers `GenerationConfig`; greedy for None."""
        if config is None or not config.do_sample:
            return cls(repetition_penalty=getattr(config, "repetition_penalty", None) or 1.0)
        return cls(
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            config.top_k or 0,
            config.repetition_penalty or 1.0,
        )


class Rng:
    """The random numbers of one reply, so that its text does not depend on which other replies share its batch."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def draw(self, count: int = 1) -> list[float]:
        """`count` numbers, uniform in [0, 1)."""
        return [self._random.random() for _ in range(count)]


@dataclass(frozen=True, slots=True)
class BatchSamplingParams:
    """The `SamplingParams` of a batch as tensors (b,): float32, but int64 for `top_k`."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    repetition_penalty: torch.Tensor

    @classmethod
    def stack(cls, rows: Sequence[SamplingParams], device: torch.device | str) -> BatchSamplingParams:
        """One row for each of `rows`, on `device`."""
        return cls(
            torch.tensor([row.temperature for row in rows], device=device),
            torch.tensor([row.top_p for row in rows], device=device),
            torch.tensor([row.top_k or MAX_CANDIDATES for row in rows], device=device),
            torch.tensor([row.repetition_penalty for row in rows], device=device),
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields in the order of the constructor."""
        return self.temperature, self.top_p, self.top_k, self.repetition_penalty


def sample(logits: torch.Tensor, uniform: torch.Tensor, params: BatchSamplingParams) -> torch.Tensor:
    """One token a row: `logits` (b, vocabulary) of any float dtype, `uniform` (b,) in [0, 1]. Returns (b,) int64.

    Top-k and nucleus sampling (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration") by inverting the
    cumulative distribution. That takes one random number a token, so a row gets the same token alone and in a batch,
    and no operation waits for the device, so a CUDA graph can record it.
    """
    values, tokens = logits.float().topk(min(MAX_CANDIDATES, logits.shape[-1]))
    temperature = params.temperature.clamp(min=1e-6)[:, None]
    probability = torch.softmax((values - values[:, :1]) / temperature, -1)
    rank = torch.arange(values.shape[-1], device=logits.device)
    before = probability.cumsum(-1) - probability
    kept = (rank < params.top_k[:, None]) & ((before < params.top_p[:, None]) | (rank == 0))
    probability = probability * kept
    cumulative = probability.cumsum(-1)
    index = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    index = index.clamp(max=values.shape[-1] - 1) * (params.temperature > 0)[:, None]
    return tokens.gather(-1, index)[:, 0]


def apply_repetition_penalty(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make tokens that occurred before less likely (Keskar et al. 2019, "CTRL").

    `logits` (b, vocabulary) float, `seen` (b, vocabulary) bool, `penalty` (b,) float. Returns new logits.
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
