"""Three-dimensional rotary positions (time, height, width): M-RoPE (Qwen2-VL, Wang et al. 2024), always explicit.

The models can count positions themselves, but their counter (`rope_deltas`) is one for all conversations.
"""

from __future__ import annotations

import torch


def linear_positions(start: int, count: int) -> torch.Tensor:
    """Text and audio: all three dimensions advance together. Returns (3, count) int64."""
    return torch.arange(start, start + count).expand(3, count)


def image_positions(start: int, height: int, width: int) -> torch.Tensor:
    """An image of height x width tokens between its two marker tokens. Returns (3, height * width + 2) int64.

    The next token's position is the largest of all plus one.
    """
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    body = torch.stack([torch.zeros_like(rows), rows, columns]) + start + 1
    before = torch.full((3, 1), start)
    after = torch.full((3, 1), int(body.max()) + 1)
    return torch.cat([before, body, after], 1)


def decode_positions(positions: torch.Tensor) -> torch.Tensor:
    """Positions (b,) of one token each in the shape that the models take, (3, b, 1)."""
    return positions[None, :, None].expand(3, -1, 1)


def text_positions(start: int, count: int, device: torch.device) -> torch.Tensor:
    """Positions of `count` text tokens from `start` on, (3, 1, count) on `device`."""
    return linear_positions(start, count)[:, None].to(device)
