"""Choosing tokens for several answers at once, each with a chance and a taste of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

CANDIDATES = 256
"""Tokens considered at most. Beyond it a probability mass is lost that no sensible top_p keeps."""


@dataclass(frozen=True, slots=True)
class Taste:
    """How tokens are chosen. `temperature` 0 takes the likeliest; `top_k` 0 means all candidates."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Dice:
    """An answer's own chance, so that what it says does not depend on who else is answering."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def throw(self, count: int = 1) -> list[float]:
        return [self._random.random() for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Tastes:
    """The tastes of a batch as tensors (b,)."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    repetition_penalty: torch.Tensor

    @classmethod
    def of(cls, tastes: list[Taste], device: torch.device | str) -> Tastes:
        return cls(
            torch.tensor([t.temperature for t in tastes], device=device),
            torch.tensor([t.top_p for t in tastes], device=device),
            torch.tensor([t.top_k or CANDIDATES for t in tastes], device=device),
            torch.tensor([t.repetition_penalty for t in tastes], device=device),
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.temperature, self.top_p, self.top_k, self.repetition_penalty


def choose(logits: torch.Tensor, chance: torch.Tensor, tastes: Tastes) -> torch.Tensor:
    """One token a row: `logits` (b, vocabulary), `chance` (b,) uniform in 0-1. Returns (b,) int64.

    Nucleus sampling (Holtzman et al. 2020) by inverting the cumulative distribution: one number a token, so
    a row's choice is the same alone and in a batch, and the whole can be recorded in a CUDA graph.
    """
    values, tokens = logits.float().topk(min(CANDIDATES, logits.shape[-1]))
    heat = tastes.temperature.clamp(min=1e-6)[:, None]
    probability = torch.softmax((values - values[:, :1]) / heat, -1)
    rank = torch.arange(values.shape[-1], device=logits.device)
    before = probability.cumsum(-1) - probability
    kept = (rank < tastes.top_k[:, None]) & ((before < tastes.top_p[:, None]) | (rank == 0))
    probability = probability * kept
    cumulative = probability.cumsum(-1)
    place = (cumulative <= chance[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    place = place.clamp(max=values.shape[-1] - 1) * (tastes.temperature > 0)[:, None]
    return tokens.gather(-1, place)[:, 0]


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make what was said less likely (Keskar et al. 2019): `logits` and `seen` (b, vocabulary), `penalty` (b,)."""
    strength = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / strength, logits * strength), logits)
