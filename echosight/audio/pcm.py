"""Conversions of PCM samples between bytes, int16 and float. All other modules use these."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PcmSamples", "downmix", "float_to_pcm", "pcm_to_float", "to_int16"]

PcmSamples = NDArray[np.int16]


def pcm_to_float(pcm: bytes) -> NDArray[np.float32]:
    """Little-endian PCM16 as float32 [samples] in [-1, 1)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) * np.float32(1 / 32768)


def float_to_pcm(samples: NDArray[np.floating[Any]]) -> bytes:
    """Float samples of any shape, full scale ±1, as PCM16. Values beyond are clipped; NaN becomes silence."""
    return to_int16(np.nan_to_num(np.ravel(samples).astype(np.float64), posinf=1, neginf=-1) * 32768).tobytes()


def to_int16(samples: NDArray[np.floating[Any]]) -> PcmSamples:
    """Float samples, full scale ±32768, rounded to int16 and clipped."""
    pcm: PcmSamples = np.minimum(np.maximum(np.rint(samples), -32768), 32767).astype(np.int16)
    return pcm


def downmix(samples: PcmSamples, channels: int) -> PcmSamples:
    """The mean of the interleaved `channels`, int16 [samples]."""
    return samples if channels == 1 else to_int16(samples.reshape(-1, channels).mean(axis=1))
