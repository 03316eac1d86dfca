"""G.711 µ-law and A-law, the codecs of telephony, by lookup table (ITU-T Recommendation G.711)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["alaw_decode", "alaw_encode", "ulaw_decode", "ulaw_encode"]

Levels = NDArray[np.int16]


def ulaw_decode(data: bytes) -> bytes:
    """G.711 µ-law as PCM16."""
    return _ULAW_LEVELS[np.frombuffer(data, np.uint8)].tobytes()


def alaw_decode(data: bytes) -> bytes:
    """G.711 A-law as PCM16."""
    return _ALAW_LEVELS[np.frombuffer(data, np.uint8)].tobytes()


def ulaw_encode(pcm: bytes) -> bytes:
    """PCM16 as G.711 µ-law."""
    return bytes(_ULAW_CODES[np.frombuffer(pcm, "<u2")])


def alaw_encode(pcm: bytes) -> bytes:
    """PCM16 as G.711 A-law."""
    return bytes(_ALAW_CODES[np.frombuffer(pcm, "<u2")])


def _ulaw_levels() -> Levels:
    code = ~np.arange(256, dtype=np.uint8) & 0xFF
    magnitude = ((((code & 0x0F).astype(np.int32) << 3) + 0x84) << ((code & 0x70) >> 4)) - 0x84
    levels: Levels = np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)
    return levels


def _alaw_levels() -> Levels:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    segment = (code & 0x70).astype(np.int32) >> 4
    magnitude = ((code & 0x0F).astype(np.int32) << 4) + np.where(segment, 0x108, 8) << np.maximum(segment - 1, 0)
    levels: Levels = np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
    return levels


def _codes(levels: Levels) -> NDArray[np.uint8]:
    """For every PCM16 value, indexed as uint16, the code of the nearest level; 0 becomes the positive zero."""
    order = np.lexsort((-np.arange(256), levels))
    distinct, first = np.unique(levels[order].astype(np.int32), return_index=True)
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    nearest = np.searchsorted((distinct[1:] + distinct[:-1]) / 2, sample, side="right")
    return order[first][nearest].astype(np.uint8)


_ULAW_LEVELS, _ALAW_LEVELS = _ulaw_levels(), _alaw_levels()
_ULAW_CODES, _ALAW_CODES = _codes(_ULAW_LEVELS), _codes(_ALAW_LEVELS)
