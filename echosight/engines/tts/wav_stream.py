"""A WAV file that is still being sent, as PCM."""

from __future__ import annotations

import struct

from echosight.audio.resampling import MAX_HZ, MIN_HZ
from echosight.errors import EngineFailure

LONGEST_HEADER = 65_536
NO_SOUND = (b"OggS", b"fLaC", b"ID3\x03", b"ID3\x04", b'{"er', b"<!do", b"<!DO", b"<htm")
"""How compressed sound and messages begin that are passed off as something else: played, they would be loud noise."""

UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFFFFF)
"""Lengths that programs write who do not know it yet."""


class WavStream:
    """Feed it bytes; it gives whole samples. What does not begin as a WAV file is PCM16 at `bare_rate`.

    Raises EngineFailure for anything but mono PCM16.
    """

    def __init__(self, bare_rate: int) -> None:
        self.rate: int | None = None
        self._bare_rate = bare_rate
        self._buffer = b""
        self._left: int | None = None

    @property
    def missing(self) -> bool:
        """Whether the header promised more than has come."""
        return bool(self._left)

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        if self.rate is None and not self._begin():
            return b""
        whole = len(self._buffer) // 2 * 2
        if self._left is not None:
            whole = min(whole, self._left)
            self._left -= whole
        pcm = self._buffer[:whole]
        # What stands behind the samples is no sound.
        self._buffer = b"" if self._left == 0 else self._buffer[whole:]
        return pcm

    def _begin(self) -> bool:
        """Read the header, once it is there."""
        head = self._buffer
        if head[:4] in NO_SOUND:
            raise EngineFailure(f"What came is no PCM: it begins with {head[:4]!r}")
        if any(start.startswith(head) for start in NO_SOUND):
            return False
        if not b"RIFF".startswith(head[:4]):
            self.rate = self._bare_rate
            return True
        at, rate = 12, None
        while at + 8 <= len(head):
            name, size = struct.unpack_from("<4sI", head, at)
            if name == b"fmt " and at + 24 <= len(head):
                rate = _rate(head, at + 8)
            elif name == b"data" and rate is not None:
                self.rate, self._buffer = rate, head[at + 8 :]
                self._left = None if size in UNKNOWN else size // 2 * 2
                return True
            at += 8 + size + (size & 1)
        if len(head) > LONGEST_HEADER:
            raise EngineFailure("A WAV file came without samples")
        return False


def _rate(head: bytes, at: int) -> int:
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at)
    if tag not in (1, 0xFFFE) or channels != 1 or bits != 16 or not MIN_HZ <= rate <= MAX_HZ:
        raise EngineFailure(f"A WAV file of {channels} channels, {bits} bits and {rate} Hz came; it must be mono PCM16")
    return int(rate)
