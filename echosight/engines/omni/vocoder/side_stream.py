"""A CUDA stream for the vocoder, so that it runs in parallel with the next decode steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from echosight.audio.pcm import float_to_pcm


class SideStream:
    """Runs the vocoder on a CUDA stream of its own; on a CPU, runs it at once."""

    def __init__(self, device: torch.device | str) -> None:
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream() if torch.device(device).type == "cuda" else None

    def run(self, vocode: Callable[[], list[torch.Tensor]]) -> list[PendingAudio]:
        """The chunks of `vocode()`, each (n,) float. Returns before the GPU has computed them."""
        if self._stream is None:
            return [PendingAudio(chunk, None) for chunk in vocode()]
        self._stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._stream):
            chunks = [_copy_to_host(chunk) for chunk in vocode()]
            event = self._cuda.Event()
            event.record()
        return [PendingAudio(chunk, event) for chunk in chunks]


class PendingAudio:
    """A chunk of samples that the GPU may still be computing."""

    def __init__(self, samples: torch.Tensor, event: Any) -> None:
        self._samples = samples
        self._event = event

    @property
    def ready(self) -> bool:
        """Whether `pcm` returns without waiting."""
        return self._event is None or bool(self._event.query())

    def pcm(self) -> bytes:
        """The chunk as PCM16; waits for the GPU if necessary."""
        if self._event is not None:
            self._event.synchronize()
        return float_to_pcm(self._samples.float().cpu().numpy())


def _copy_to_host(chunk: torch.Tensor) -> torch.Tensor:
    """Copy into pinned memory; a copy to ordinary memory would make this thread wait for the stream."""
    return torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=True).copy_(chunk, non_blocking=True)
