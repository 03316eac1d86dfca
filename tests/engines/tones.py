"""A tone as PCM16."""

from __future__ import annotations

import numpy as np


def tone(rate: int, ms: int = 300) -> bytes:
    """440 Hz."""
    wave = 8000 * np.sin(np.arange(rate * ms // 1000) * 2 * np.pi * 440 / rate)
    return wave.astype("<i2").tobytes()
