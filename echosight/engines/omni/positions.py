"""Three-dimensional rotary positions (time, height, width), always given to the model explicitly.

The models' own counters (`rope_deltas`) are shared by all that runs on them: one conversation would move another's.
"""

from __future__ import annotations

import torch


def linear(start: int, count: int) -> torch.Tensor:
    """Text and audio: all three advance together. Returns (3, count)."""
    return torch.arange(start, start + count).expand(3, count)


def picture(start: int, height: int, width: int) -> torch.Tensor:
    """A still picture of height x width tokens between its two marker tokens. Returns (3, height * width + 2).

    What follows continues behind the largest of all: at ``int(result.max()) + 1``.
    """
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    body = torch.stack([torch.zeros_like(rows), rows, columns]) + start + 1
    before = torch.full((3, 1), start)
    after = torch.full((3, 1), int(body.max()) + 1)
    return torch.cat([before, body, after], 1)


def decode_places(places: torch.Tensor) -> torch.Tensor:
    """Positions (b) of one token each as the models want them, (3, b, 1)."""
    return places[None, :, None].expand(3, -1, 1)


def prompt_places(start: int, count: int, device: torch.device) -> torch.Tensor:
    """Positions of `count` tokens of text from `start` on, (3, 1, count)."""
    return linear(start, count)[:, None].to(device)
