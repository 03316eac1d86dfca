"""Arithmetic on PCM samples: bytes, 16-bit integers and floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]


def pcm_to_float(pcm: bytes) -> NDArray[np.float32]:
    """PCM16 as float32 in [-1, 1)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) * np.float32(1 / 32768)


def float_to_pcm(samples: NDArray[np.floating[Any]]) -> bytes:
    """Samples in [-1, 1], of any shape, as PCM16. Louder samples are clipped; NaN becomes silence."""
    return to_int16(np.nan_to_num(np.ravel(samples).astype(np.float64), posinf=1, neginf=-1) * 32768).tobytes()


def to_int16(samples: NDArray[np.floating[Any]]) -> Samples:
    """Samples in [-32768, 32767], rounded; what lies outside is clipped."""
    pcm: Samples = np.minimum(np.maximum(np.rint(samples), -32768), 32767).astype(np.int16)
    return pcm


def downmix(samples: Samples, channels: int) -> Samples:
    """Interleaved channels as their mean."""
    return samples if channels == 1 else to_int16(samples.reshape(-1, channels).mean(axis=1))
