"""Codes to samples while the codes still come: what every vocoder does, and Qwen3's causal one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from echosight.engines.omni.graphs import Recorder

IpcFrame = tuple[int, ...]
"""The codes of one step of the talker: one (Qwen2.5) or one a codebook (Qwen3)."""


class Vocoder(Protocol):
    """Turns the frames of one answer into samples at 24 kHz."""

    def push(self, frames: Sequence[IpcFrame], *, final: bool) -> list[torch.Tensor]:
        """`frames` are all so far. Returns new stretches of float samples (n,) on the model's device."""


class SideStream:
    """A CUDA stream of the vocoder's own, so that it runs beside the next steps of the decoder; on a CPU, nothing."""

    def __init__(self, device: torch.device | str) -> None:
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream() if torch.device(device).type == "cuda" else None

    def run(self, work: Callable[[], list[torch.Tensor]]) -> list[Samples]:
        if self._stream is None:
            return [Samples(piece, None) for piece in work()]
        self._stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._stream):
            pieces = [_copy_to_host(piece) for piece in work()]
            event = self._cuda.Event()
            event.record()
        return [Samples(piece, event) for piece in pieces]


class Samples:
    """Samples on their way from the vocoder's stream."""

    def __init__(self, samples: torch.Tensor, event: Any) -> None:
        self._samples = samples
        self._event = event

    @property
    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())

    def pcm(self) -> bytes:
        """16-bit PCM; waits where it must."""
        if self._event is not None:
            self._event.synchronize()
        scaled = np.rint(self._samples.float().cpu().numpy() * 32767.0)
        pcm: bytes = np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
        return pcm


def _copy_to_host(piece: torch.Tensor) -> torch.Tensor:
    """Into pinned memory: any other copy would make this thread wait for the stream."""
    return torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True).copy_(piece, non_blocking=True)


def decode(code2wav: Any, codes: torch.Tensor) -> torch.Tensor:
    """Samples (n) of `codes` (1, codebooks, frames): `Qwen3OmniMoeCode2Wav.forward`, with a mask made there."""
    hidden = code2wav.code_embedding(codes + code2wav.code_offset).mean(1)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    behind = place[:, None] - place
    window = (behind >= 0) & (behind < code2wav.config.sliding_window)
    hidden = code2wav.pre_transformer(
        inputs_embeds=hidden,
        attention_mask={"sliding_attention": window[None, None], "full_attention": (behind >= 0)[None, None]},
    ).last_hidden_state.permute(0, 2, 1)
    for blocks in code2wav.upsample:
        for block in blocks:
            hidden = block(hidden)
    for block in code2wav.decoder:
        hidden = block(hidden)
    samples: torch.Tensor = hidden.clamp(-1, 1)[0, 0]
    return samples


class CausalVocoder:
    """Qwen3's code2wav: causal but for samples that its transposed convolutions cut off the end.

    So the samples of the first n frames are a prefix of all; each window of new frames is decoded with `context` frames
    on its left (25 give 103 dB against one shot), and what was cut off last time is made up for.
    """

    def __init__(
        self, code2wav: Any, recorder: Recorder, *, chunk: int = 25, first: int = 8, context: int = 25
    ) -> None:
        self._model = code2wav
        self._recorder = recorder
        self._device = next(code2wav.parameters()).device
        self._chunk = chunk
        self._next = first
        self._context = context
        self._samples_a_frame = int(code2wav.total_upsample)
        self._decoded = 0
        self._emitted = 0

    def push(self, frames: Sequence[IpcFrame], *, final: bool) -> list[torch.Tensor]:
        pieces = []
        while len(frames) - self._decoded >= self._next or (final and len(frames) > self._decoded):
            regular = len(frames) - self._decoded >= self._next
            end = min(len(frames), self._decoded + self._next)
            start = max(0, self._decoded - self._context)
            codes = torch.tensor(frames[start:end], device=self._device).T[None]
            key = tuple(codes.shape) if regular else None
            (samples,) = self._recorder.run("code2wav", key, lambda c: (decode(self._model, c),), codes)
            offset = start * self._samples_a_frame
            pieces.append(samples[self._emitted - offset :])
            self._emitted = offset + len(samples)
            self._decoded, self._next = end, self._chunk
        return pieces
