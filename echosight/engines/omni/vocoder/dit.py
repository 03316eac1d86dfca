"""A diffusion transformer: codes to mel spectrogram by flow matching, the first half of Qwen2.5-Omni's vocoder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

STEPS = 10
GUIDANCE = 0.5
SWAY = -1.0


class VoiceConditioning:
    """A voice as the transformer takes it, encoded once instead of at each evaluation.

    `conditioning` is (1, enc_emb_dim) and `reference_mel` (1, frames, mels), both as in the checkpoint's
    ``spk_dict.pt``. The second row of each tensor is the unconditional one, for classifier-free guidance.
    """

    def __init__(self, dit: Any, conditioning: torch.Tensor, reference_mel: torch.Tensor) -> None:
        device = next(dit.parameters()).device
        conditioning, mel = conditioning.float().to(device), reference_mel.float().to(device)
        self.speaker = torch.cat([conditioning, torch.zeros_like(conditioning)])[:, None]
        """(2, 1, enc_emb_dim) float32."""
        self.reference = dit.input_embed.spk_encoder(torch.cat([mel, torch.zeros_like(mel)]))[:, None]
        """(2, 1, enc_dim) float32."""


def diffuse(
    dit: Any, codes: torch.Tensor, noise: torch.Tensor, speaker: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Mel spectrogram (1, frames, mels) of `codes` (1, n) int64, from `noise` of the result's shape.

    `Qwen2_5OmniToken2WavDiTModel.sample` of transformers' ``modeling_qwen2_5_omni.py``, but everything that is the
    same in all 36 evaluations of the network is computed once. Classifier-free guidance (Ho & Salimans 2022) runs as a
    batch of two, with and without voice and codes. `speaker` and `reference` are those of `VoiceConditioning`.
    """
    frames = noise.shape[1]
    text = torch.cat([dit.text_embed(codes), dit.text_embed(codes, drop_code=True)])
    speakers, references = speaker.expand(-1, frames, -1), reference.expand(-1, frames, -1)
    index = torch.arange(frames, device=noise.device)
    rotary = dit.rotary_embed(text, index[None].expand(2, -1))
    blocks = index // dit.block_size
    block_distance = (blocks[None] - blocks[:, None]).expand(2, dit.num_attention_heads, frames, frames)

    def velocity(time: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        time_embedding = dit.time_embed(time.repeat(2))
        hidden = dit.input_embed.proj(torch.cat([mel.expand(2, -1, -1), references, text, speakers], -1))
        for block in dit.transformer_blocks:
            hidden = block(hidden, time_embedding, position_embeddings=rotary, block_diff=block_distance)
        conditional, unconditional = dit.proj_out(dit.norm_out(hidden, time_embedding)).chunk(2)
        guided: torch.Tensor = conditional + (conditional - unconditional) * GUIDANCE
        return guided

    return _integrate(velocity, noise)


def _integrate(velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], mel: torch.Tensor) -> torch.Tensor:
    """Fourth-order Runge-Kutta, 3/8 rule (upstream's `RungeKutta4ODESolver`), with sway sampling of the time steps
    (F5-TTS, Chen et al. 2024).
    """
    times = torch.linspace(0, 1, STEPS, device=mel.device)
    times = times + SWAY * (torch.cos(torch.pi / 2 * times) - 1 + times)
    for start, end in pairwise(times):
        step = end - start
        k1 = velocity(start, mel)
        k2 = velocity(start + step / 3, mel + step * k1 / 3)
        k3 = velocity(start + step * 2 / 3, mel + step * (k2 - k1 / 3))
        k4 = velocity(end, mel + step * (k1 - k2 + k3))
        mel = mel + (k1 + 3 * (k2 + k3) + k4) * step / 8
    return mel
