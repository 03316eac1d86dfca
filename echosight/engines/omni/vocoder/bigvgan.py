"""BigVGAN (Lee et al. 2023): mel spectrogram to samples, the second half of Qwen2.5-Omni's vocoder."""

from __future__ import annotations

from typing import Any

import torch

MIN_DB = -115


def synthesize(gan: Any, mel: torch.Tensor) -> torch.Tensor:
    """Samples (n,) in [-1, 1] of `mel` (1, mels, frames).

    `Qwen2_5OmniToken2WavBigVGANModel.forward` of transformers' ``modeling_qwen2_5_omni.py``, which copies its result to
    the CPU; here it stays on the device.
    """
    # Upstream's normalization, without its constant tensor, which would have to be copied to the device.
    decibels = 20 * mel.exp().clamp(min=10 ** (MIN_DB / 20)).log10() - 20
    hidden = gan.conv_pre((2 * (decibels - MIN_DB) / -MIN_DB - 1).clamp(-1, 1))
    kernels = gan.num_residual_blocks
    for layer, up in enumerate(gan.ups):
        hidden = up[0](hidden)
        blocks = gan.resblocks[layer * kernels : (layer + 1) * kernels]
        hidden = sum(block(hidden) for block in blocks) / kernels
    wave: torch.Tensor = gan.conv_post(gan.activation_post(hidden))
    return wave.clamp(-1.0, 1.0).reshape(-1)
