"""A WAV file as PCM, while it is being received."""

from __future__ import annotations

import struct

from echosight.audio.resampling import MAX_HZ, MIN_HZ
from echosight.errors import EngineFailure

MAX_HEADER_BYTES = 65_536
NOT_PCM = {
    b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file",
    b"ID3\x03": "an MP3 file",
    b"ID3\x04": "an MP3 file",
    b'{"er': "JSON",
    b"<!do": "HTML",
    b"<!DO": "HTML",
    b"<htm": "HTML",
}
"""First bytes of what servers send under a wrong content type: played as PCM, it would be loud noise."""

UNKNOWN_LENGTHS = (0, 0xFFFFFFFF, 0x7FFFFFFF)
"""Placeholder lengths that streaming writers put into the header."""


class WavStream:
    """Takes bytes and returns whole samples of mono PCM16. Where no WAV header comes first, all is PCM at `bare_rate`.

    `rate` is None until it is known. `push` raises `EngineFailure` for anything but mono PCM16.
    """

    def __init__(self, bare_rate: int) -> None:
        self.rate: int | None = None
        self._bare_rate = bare_rate
        self._buffer = b""
        self._bytes_left: int | None = None
        """Of the samples, where the header says how many there are."""

    @property
    def incomplete(self) -> bool:
        """Whether the header promised more samples than have come."""
        return bool(self._bytes_left)

    def push(self, data: bytes) -> bytes:
        """The samples that `data` completes."""
        self._buffer += data
        if self.rate is None and not self._read_header():
            return b""
        size = len(self._buffer) // 2 * 2
        if self._bytes_left is not None:
            size = min(size, self._bytes_left)
            self._bytes_left -= size
        pcm = self._buffer[:size]
        # What comes after the samples is metadata.
        self._buffer = b"" if self._bytes_left == 0 else self._buffer[size:]
        return pcm

    def _read_header(self) -> bool:
        """Returns whether it is complete."""
        head = self._buffer
        if head[:4] in NOT_PCM:
            raise EngineFailure(f"Expected WAV or raw PCM but got {NOT_PCM[head[:4]]}")
        if any(start.startswith(head) for start in NOT_PCM):
            return False
        if not b"RIFF".startswith(head[:4]):
            self.rate = self._bare_rate
            return True
        offset, rate = 12, None
        while offset + 8 <= len(head):
            name, size = struct.unpack_from("<4sI", head, offset)
            if name == b"fmt " and offset + 24 <= len(head):
                rate = _read_rate(head, offset + 8)
            elif name == b"data" and rate is not None:
                self.rate, self._buffer = rate, head[offset + 8 :]
                self._bytes_left = None if size in UNKNOWN_LENGTHS else size // 2 * 2
                return True
            offset += 8 + size + (size & 1)
        if len(head) > MAX_HEADER_BYTES:
            raise EngineFailure(f"Expected a WAV file but found no samples in its first {MAX_HEADER_BYTES} bytes")
        return False


def _read_rate(head: bytes, offset: int) -> int:
    """Hz, by the chunk ``fmt``."""
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, offset)
    if tag not in (1, 0xFFFE) or channels != 1 or bits != 16 or not MIN_HZ <= rate <= MAX_HZ:
        raise EngineFailure(f"Expected mono PCM16 but got a WAV file of {channels} channels, {bits} bits and {rate} Hz")
    return int(rate)
