"""Qwen3-Omni's vocoder, code2wav, in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.vocoder import CodecFrame


def decode(code2wav: Any, codes: torch.Tensor) -> torch.Tensor:
    """Samples (n,) of `codes` (1, codebooks, frames) int64.

    `Qwen3OmniMoeCode2Wav.forward` of transformers' ``modeling_qwen3_omni_moe.py``, but with masks that are computed on
    the device.
    """
    hidden = code2wav.code_embedding(codes + code2wav.code_offset).mean(1)
    index = torch.arange(hidden.shape[1], device=hidden.device)
    distance = index[:, None] - index
    window = (distance >= 0) & (distance < code2wav.config.sliding_window)
    hidden = code2wav.pre_transformer(
        inputs_embeds=hidden,
        attention_mask={"sliding_attention": window[None, None], "full_attention": (distance >= 0)[None, None]},
    ).last_hidden_state.permute(0, 2, 1)
    for blocks in code2wav.upsample:
        for block in blocks:
            hidden = block(hidden)
    for block in code2wav.decoder:
        hidden = block(hidden)
    samples: torch.Tensor = hidden.clamp(-1, 1)[0, 0]
    return samples


class CausalVocoder:
    """A `Vocoder` by Qwen3's code2wav. It is causal, except that its transposed convolutions cut samples off the end.

    So the samples of the first n frames are a prefix of all samples. Each window of new frames is decoded with
    `context` frames on its left (25 give 103 dB signal to noise against decoding all at once), and the samples that
    the previous window cut off are emitted with the next. A window has `chunk` frames, the first one `first`.
    """

    def __init__(
        self, code2wav: Any, recorder: GraphRecorder, *, chunk: int = 25, first: int = 8, context: int = 25
    ) -> None:
        self._model = code2wav
        self._recorder = recorder
        self._device = next(code2wav.parameters()).device
        self._chunk = chunk
        self._next = first
        self._context = context
        self._samples_per_frame = int(code2wav.total_upsample)
        self._decoded = 0
        """Frames."""
        self._emitted = 0
        """Samples."""

    def push(self, frames: Sequence[CodecFrame], *, final: bool) -> list[torch.Tensor]:
        """See `Vocoder.push`."""
        chunks = []
        while len(frames) - self._decoded >= self._next or (final and len(frames) > self._decoded):
            full = len(frames) - self._decoded >= self._next
            end = min(len(frames), self._decoded + self._next)
            start = max(0, self._decoded - self._context)
            codes = torch.tensor(frames[start:end], device=self._device).T[None]
            key = tuple(codes.shape) if full else None
            (samples,) = self._recorder.run("code2wav", key, lambda c: (decode(self._model, c),), codes)
            offset = start * self._samples_per_frame
            chunks.append(samples[self._emitted - offset :])
            self._emitted = offset + len(samples)
            self._decoded, self._next = end, self._chunk
        return chunks
