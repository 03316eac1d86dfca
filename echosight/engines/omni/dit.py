"""Qwen2.5's vocoder: a diffusion transformer from codes to mel, then BigVGAN from mel to samples, both in windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.vocoder import IpcFrame

STEPS = 10
GUIDANCE = 0.5
SWAY = -1.0
QUIETEST_DB = -115
MEL_CONTEXT = 20
"""Mel frames on either side that BigVGAN needs for samples equal to one shot's."""


class Speaker:
    """What the transformer is told about a voice, encoded once and not at each of its evaluations.

    `conditioning` is (1, enc_emb_dim), `reference_mel` (1, frames, mels); both as in the checkpoint's ``spk_dict.pt``.
    """

    def __init__(self, dit: Any, conditioning: torch.Tensor, reference_mel: torch.Tensor) -> None:
        device = next(dit.parameters()).device
        conditioning, mel = conditioning.float().to(device), reference_mel.float().to(device)
        self.vector = torch.cat([conditioning, torch.zeros_like(conditioning)])[:, None]
        self.reference = dit.input_embed.spk_encoder(torch.cat([mel, torch.zeros_like(mel)]))[:, None]


def diffuse(
    dit: Any, codes: torch.Tensor, noise: torch.Tensor, vector: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Mel (1, frames, mels) of `codes` (1, n) from `noise` of the same shape: `Qwen2_5OmniToken2WavDiTModel.sample`.

    Everything that does not change between the 36 evaluations of the network is computed once. Classifier-free
    guidance (Ho & Salimans 2022) runs as a batch of two, with and without the speaker and the codes.
    """
    frames = noise.shape[1]
    text = torch.cat([dit.text_embed(codes), dit.text_embed(codes, drop_code=True)])
    vectors, references = vector.expand(-1, frames, -1), reference.expand(-1, frames, -1)
    places = torch.arange(frames, device=noise.device)
    rotary = dit.rotary_embed(text, places[None].expand(2, -1))
    blocks = places // dit.block_size
    apart = (blocks[None] - blocks[:, None]).expand(2, dit.num_attention_heads, frames, frames)

    def velocity(time: torch.Tensor, mel: torch.Tensor) -> Any:
        when = dit.time_embed(time.repeat(2))
        hidden = dit.input_embed.proj(torch.cat([mel.expand(2, -1, -1), references, text, vectors], -1))
        for block in dit.transformer_blocks:
            hidden = block(hidden, when, position_embeddings=rotary, block_diff=apart)
        guided, plain = dit.proj_out(dit.norm_out(hidden, when)).chunk(2)
        return guided + (guided - plain) * GUIDANCE

    return _integrate(velocity, noise)


def _integrate(velocity: Any, mel: torch.Tensor) -> torch.Tensor:
    """Runge-Kutta (3/8 rule) over the model's swayed time steps."""
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


class WindowedVocoder:
    """Mel of `chunk` codes at a time, with `back` and `ahead` blocks of codes around them; samples behind it.

    Two blocks back and one ahead give 69 dB against one shot with the same noise, four and two 99 dB.
    """

    def __init__(
        self,
        token2wav: Any,
        speaker: Speaker,
        recorder: Recorder,
        *,
        seed: int | None = None,
        chunk: int = 24,
        back: int = 2,
        ahead: int = 1,
    ) -> None:
        self._dit = token2wav.code2wav_dit_model
        self._gan = token2wav.code2wav_bigvgan_model
        self._speaker = speaker
        self._recorder = recorder
        self._device = next(self._dit.parameters()).device
        block = self._dit.block_size // self._dit.repeats
        self._chunk = max(1, chunk // block) * block
        self._back, self._ahead = back * block, ahead * block
        self._samples_a_frame = 1
        for rate in token2wav.config.bigvgan_config.upsample_rates:
            self._samples_a_frame *= rate
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        # On the CPU's generator, so that a seed means the same on every device.
        self._noise = torch.zeros(1, 0, self._dit.mel_dim)
        self._mel = torch.zeros(1, 0, self._dit.mel_dim, device=self._device)
        self._done = 0
        self._emitted = 0
        """Mel frames whose samples are out, counted like those of `_mel` from the first frame of the answer."""
        self._dropped = 0
        """Mel frames forgotten at the front of `_mel`."""

    def push(self, frames: Sequence[IpcFrame], *, final: bool) -> list[torch.Tensor]:
        pieces: list[torch.Tensor] = []
        while True:
            left = len(frames) - self._done
            regular = left >= self._chunk + self._ahead
            if not regular and not (final and left):
                return pieces
            take = self._chunk if regular else left
            self._extend_mel(frames, take, regular)
            last = final and self._done == len(frames)
            samples = self._vocode(last=last, regular=regular)
            if len(samples):
                pieces.append(samples)

    def _extend_mel(self, frames: Sequence[IpcFrame], take: int, regular: bool) -> None:
        start, end = max(0, self._done - self._back), min(len(frames), self._done + take + self._ahead)
        codes = torch.tensor([[code for (code,) in frames[start:end]]], device=self._device)
        noise = self._noise_for(start, end).to(self._device)
        speaker = self._speaker
        (mel,) = self._recorder.run(
            "dit",
            codes.shape[1] if regular else None,
            lambda c, n, v, r: (diffuse(self._dit, c, n, v, r),),
            codes,
            noise,
            speaker.vector,
            speaker.reference,
        )
        repeats = self._dit.repeats
        fresh = mel[:, (self._done - start) * repeats : (self._done - start + take) * repeats]
        self._mel = torch.cat([self._mel, fresh], 1)
        self._done += take

    def _vocode(self, *, last: bool, regular: bool) -> torch.Tensor:
        known = self._dropped + self._mel.shape[1]
        end = known if last else known - MEL_CONTEXT
        if end <= self._emitted:
            return self._mel.new_zeros(0)
        start = max(self._dropped, self._emitted - MEL_CONTEXT)
        mel = self._mel[:, start - self._dropped :].permute(0, 2, 1).contiguous()
        key = mel.shape[2] if regular and not last else None
        (samples,) = self._recorder.run("bigvgan", key, lambda m: (synthesise(self._gan, m),), mel)
        fresh = samples[(self._emitted - start) * self._samples_a_frame : (end - start) * self._samples_a_frame]
        self._emitted = end
        surplus = max(0, end - MEL_CONTEXT - self._dropped)
        self._mel, self._dropped = self._mel[:, surplus:], self._dropped + surplus
        return fresh

    def _noise_for(self, start: int, end: int) -> torch.Tensor:
        repeats = self._dit.repeats
        missing = end * repeats - self._noise.shape[1]
        if missing > 0:
            more = torch.randn(1, missing, self._noise.shape[2], generator=self._generator)
            self._noise = torch.cat([self._noise, more], 1)
        return self._noise[:, start * repeats : end * repeats]


def synthesise(gan: Any, mel: torch.Tensor) -> torch.Tensor:
    """Samples (n,) of `mel` (1, mels, frames): `Qwen2_5OmniToken2WavBigVGANModel.forward`, which ends on the CPU."""
    # As upstream scales it, without a constant that would have to be copied to the device.
    decibels = 20 * mel.exp().clamp(min=10 ** (QUIETEST_DB / 20)).log10() - 20
    hidden = gan.conv_pre((2 * (decibels - QUIETEST_DB) / -QUIETEST_DB - 1).clamp(-1, 1))
    kernels = gan.num_residual_blocks
    for layer, up in enumerate(gan.ups):
        hidden = up[0](hidden)
        blocks = gan.resblocks[layer * kernels : (layer + 1) * kernels]
        hidden = sum(block(hidden) for block in blocks) / kernels
    wave: torch.Tensor = gan.conv_post(gan.activation_post(hidden))
    return wave.clamp(-1.0, 1.0).reshape(-1)
