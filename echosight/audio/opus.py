"""Opus packets without a container, encoded and decoded by FFmpeg's libopus (PyAV)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from echosight.audio.pcm import PcmSamples
from echosight.audio.resampling import Resampler
from echosight.errors import InputError

if TYPE_CHECKING:
    import av

__all__ = ["FRAME_MS", "OPUS_RATES", "OpusDecoder", "OpusEncoder", "require_opus"]

FRAME_MS = 60
"""Duration of the packets that are made: the longest one that Opus has, for the fewest headers on a thin link."""

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""Sample rates of an Opus encoder, Hz."""

MAX_PACKET_BYTES = 1275 * 6 + 7
"""Longest Opus packet: 120 ms in frames of 20 ms (RFC 6716, 3.4)."""

_DECODED_HZ = 48_000


def require_opus() -> None:
    """Raises `InputError` 501 where PyAV is not installed."""
    _av()


def _av() -> Any:
    """PyAV, imported when it is needed: it comes with an extra."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError(
            "This server has no Opus; start it with `uv run --extra webrtc`", code="unsupported", status=501
        ) from error
    return av


class OpusDecoder:
    """Decodes one stream of packets to mono PCM16 at `rate` Hz. Raises `InputError` 501 without PyAV."""

    def __init__(self, rate: int) -> None:
        self._av = _av()
        self._codec: av.AudioCodecContext = self._av.CodecContext.create("libopus", "r")
        self._codec.sample_rate = _DECODED_HZ
        self._codec.layout = "mono"
        self._resampler = Resampler(_DECODED_HZ, rate, causal=True)

    def decode(self, packet: bytes) -> bytes:
        """The samples of one packet. Raises `InputError` ``invalid_audio``; later packets can still be decoded."""
        if not 0 < len(packet) <= MAX_PACKET_BYTES:
            raise InputError("Not an Opus packet", code="invalid_audio")
        try:
            frames = self._codec.decode(self._av.Packet(packet))
        except (self._av.FFmpegError, EOFError, ValueError) as error:
            raise InputError("Not an Opus packet", code="invalid_audio") from error
        return self._resampler.push(b"".join(frame.to_ndarray().tobytes() for frame in frames))


class OpusEncoder:
    """Encodes one stream of mono PCM16 at `rate` Hz, one of `OPUS_RATES`, in packets of `FRAME_MS`.

    Raises `InputError` 501 without PyAV.
    """

    def __init__(self, rate: int, bit_rate: int = 24_000) -> None:
        self._av = _av()
        self._rate = rate
        self._bit_rate = bit_rate
        self._frame_samples = rate * FRAME_MS // 1000
        self._buffer = bytearray()
        self._codec = self._open()
        self._position = 0

    def _open(self) -> av.AudioCodecContext:
        codec: av.AudioCodecContext = self._av.CodecContext.create("libopus", "w")
        codec.sample_rate = self._rate
        codec.layout = "mono"
        codec.format = "s16"
        codec.bit_rate = self._bit_rate
        codec.options = {"frame_duration": str(FRAME_MS), "application": "voip"}
        codec.open()
        return codec

    def push(self, pcm: bytes) -> list[bytes]:
        """Packets of the samples that fill a frame."""
        self._buffer += pcm
        packets = []
        size = 2 * self._frame_samples
        while len(self._buffer) >= size:
            packets += self._encode(np.frombuffer(bytes(self._buffer[:size]), "<i2"))
            del self._buffer[:size]
        return packets

    def flush(self) -> list[bytes]:
        """Packets of the rest, filled up with silence. The stream can go on."""
        if not self._buffer:
            return []
        return self.push(bytes(2 * self._frame_samples - len(self._buffer)))

    def clear(self) -> None:
        """Drop samples that do not fill a frame yet."""
        self._buffer.clear()

    def _encode(self, samples: PcmSamples) -> list[bytes]:
        frame = self._av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._position += self._frame_samples
        return [bytes(packet) for packet in self._codec.encode(frame)]
