"""Qwen2.5-Omni's vocoder in windows: the diffusion transformer, then BigVGAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.vocoder import CodecFrame
from echosight.engines.omni.vocoder.bigvgan import synthesize
from echosight.engines.omni.vocoder.dit import VoiceConditioning, diffuse

MEL_CONTEXT = 20
"""Mel frames on either side with which BigVGAN's samples equal those of the whole spectrogram."""


class WindowedVocoder:
    """A `Vocoder` by Qwen2.5's token2wav: mel of `chunk` codes at a time, with `back` and `ahead` blocks around them.

    Two blocks back and one ahead give 69 dB signal to noise against all codes at once with the same noise; four and two
    give 99 dB. The scheme is that of the Qwen2.5-Omni report (Xu et al. 2025, "Streaming codec generation").
    """

    def __init__(
        self,
        token2wav: Any,
        voice: VoiceConditioning,
        recorder: GraphRecorder,
        *,
        seed: int | None = None,
        chunk: int = 24,
        back: int = 2,
        ahead: int = 1,
    ) -> None:
        self._dit = token2wav.code2wav_dit_model
        self._gan = token2wav.code2wav_bigvgan_model
        self._voice = voice
        self._recorder = recorder
        self._device = next(self._dit.parameters()).device
        block = self._dit.block_size // self._dit.repeats
        self._chunk = max(1, chunk // block) * block
        self._back, self._ahead = back * block, ahead * block
        self._samples_per_mel_frame = 1
        for rate in token2wav.config.bigvgan_config.upsample_rates:
            self._samples_per_mel_frame *= rate
        # A generator on the CPU, so that a seed gives the same noise on every device.
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._noise = torch.zeros(1, 0, self._dit.mel_dim)
        self._mel = torch.zeros(1, 0, self._dit.mel_dim, device=self._device)
        self._decoded = 0
        """Codes whose mel frames are computed."""
        self._emitted = 0
        """Mel frames whose samples were returned, counted from the first frame of the reply."""
        self._dropped = 0
        """Mel frames removed from the front of `_mel`."""

    def push(self, frames: Sequence[CodecFrame], *, final: bool) -> list[torch.Tensor]:
        """See `Vocoder.push`."""
        chunks: list[torch.Tensor] = []
        while True:
            remaining = len(frames) - self._decoded
            full = remaining >= self._chunk + self._ahead
            if not full and not (final and remaining):
                return chunks
            self._extend_mel(frames, self._chunk if full else remaining, full)
            last = final and self._decoded == len(frames)
            samples = self._vocode(last=last, full=full)
            if len(samples):
                chunks.append(samples)

    def _extend_mel(self, frames: Sequence[CodecFrame], count: int, full: bool) -> None:
        """Compute the mel frames of the next `count` codes."""
        start, end = max(0, self._decoded - self._back), min(len(frames), self._decoded + count + self._ahead)
        codes = torch.tensor([[code for (code,) in frames[start:end]]], device=self._device)
        noise = self._noise_of(start, end).to(self._device)
        (mel,) = self._recorder.run(
            "dit",
            codes.shape[1] if full else None,
            lambda c, n, s, r: (diffuse(self._dit, c, n, s, r),),
            codes,
            noise,
            self._voice.speaker,
            self._voice.reference,
        )
        repeats = self._dit.repeats
        new = mel[:, (self._decoded - start) * repeats : (self._decoded - start + count) * repeats]
        self._mel = torch.cat([self._mel, new], 1)
        self._decoded += count

    def _vocode(self, *, last: bool, full: bool) -> torch.Tensor:
        """The samples of the mel frames that have their right context; all with `last`."""
        known = self._dropped + self._mel.shape[1]
        end = known if last else known - MEL_CONTEXT
        if end <= self._emitted:
            return self._mel.new_zeros(0)
        start = max(self._dropped, self._emitted - MEL_CONTEXT)
        mel = self._mel[:, start - self._dropped :].permute(0, 2, 1).contiguous()
        key = mel.shape[2] if full and not last else None
        (samples,) = self._recorder.run("bigvgan", key, lambda m: (synthesize(self._gan, m),), mel)
        per_frame = self._samples_per_mel_frame
        new = samples[(self._emitted - start) * per_frame : (end - start) * per_frame]
        self._emitted = end
        surplus = max(0, end - MEL_CONTEXT - self._dropped)
        self._mel, self._dropped = self._mel[:, surplus:], self._dropped + surplus
        return new

    def _noise_of(self, start: int, end: int) -> torch.Tensor:
        """The noise of codes `start` to `end`; a code gets the same noise in every window that contains it."""
        repeats = self._dit.repeats
        missing = end * repeats - self._noise.shape[1]
        if missing > 0:
            more = torch.randn(1, missing, self._noise.shape[2], generator=self._generator)
            self._noise = torch.cat([self._noise, more], 1)
        return self._noise[:, start * repeats : end * repeats]
