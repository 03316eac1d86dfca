"""Sound as bytes: PCM, WAV and whatever libsndfile reads, brought to mono PCM16; and streaming resampling."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echosight.errors import InputError
from echosight.g711 import alaw_decode, ulaw_decode
from echosight.media import AudioChunk

MIN_HZ, MAX_HZ = 4_000, 192_000
MAX_CHANNELS = 32

Samples = NDArray[np.int16]

_RAW = {"pcm", "pcm16", "raw", "s16le", "l16"}
_ULAW = {"g711_ulaw", "ulaw", "mulaw", "pcmu"}
_ALAW = {"g711_alaw", "alaw", "pcma"}
_FILES = {"wav", "wave", "mp3", "mpeg", "flac", "ogg", "opus", "vorbis", "aiff", "aif", "au", "caf"}


def decode_audio(
    data: bytes, format: str = "wav", sample_rate: int | None = None, *, max_seconds: float = 600
) -> AudioChunk:
    """Any audio that a client may send, as mono PCM16 at its own rate.

    `format` is a short name or a media type. A file is known by its first bytes, so a mislabelled WAV is still a WAV;
    raw formats need `sample_rate` (16000 for PCM and 8000 for G.711 if None).
    Raises `InputError`: ``invalid_audio``, or status 413 for more than `max_seconds`.
    """
    name = format.lower().partition(";")[0].rpartition("/")[2].removeprefix("x-")
    if data[:4] in (b"RIFF", b"RF64") or name in _FILES:
        chunk = _decode_file(data, max_seconds)
    elif name in _RAW:
        chunk = AudioChunk(data[: len(data) // 2 * 2], 16_000 if sample_rate is None else sample_rate)
    elif name in _ULAW:
        chunk = AudioChunk(ulaw_decode(data), 8_000 if sample_rate is None else sample_rate)
    elif name in _ALAW:
        chunk = AudioChunk(alaw_decode(data), 8_000 if sample_rate is None else sample_rate)
    else:
        raise _invalid(f"Unknown audio format {format[:40]!r}")
    _check_rate(chunk.rate)
    if chunk.seconds > max_seconds:
        raise _too_long(max_seconds)
    return chunk


def wav_bytes(chunk: AudioChunk) -> bytes:
    """A WAV file with a 44-byte header."""
    return wav_header(chunk.rate, len(chunk.pcm)) + chunk.pcm


def wav_header(rate: int, size: int) -> bytes:
    """The 44 bytes in front of `size` bytes of mono PCM16."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16, b"data", size
    )


def pcm_to_float(pcm: bytes) -> NDArray[np.float32]:
    """PCM16 as float32 in [-1, 1)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) * np.float32(1 / 32768)


def float_to_pcm(samples: NDArray[np.floating[Any]]) -> bytes:
    """Samples in [-1, 1] as PCM16; louder ones are clipped, what is no number is silence."""
    return _to_int16(np.nan_to_num(samples.astype(np.float64), posinf=1, neginf=-1) * 32768).tobytes()


def downmix(samples: Samples, channels: int) -> Samples:
    """Interleaved channels as their mean."""
    return samples if channels == 1 else _to_int16(samples.reshape(-1, channels).mean(axis=1))


def resample(chunk: AudioChunk, rate: int) -> AudioChunk:
    """A whole recording at another rate."""
    return AudioChunk(Resampler(chunk.rate, rate).push(chunk.pcm, last=True), rate)


class Resampler:
    """PCM16 at one rate into PCM16 at another, piece by piece, with a few milliseconds of look-ahead at most.

    A polyphase windowed-sinc filter: `_ZEROS` zero crossings of the lower rate on each side, which is also what it
    holds back (1.5 ms where the lower rate is 16 kHz). How the input is cut into pieces does not change a bit of the
    output, and the n-th output lies at the same instant as in one piece. Lengths are rounded to the nearest sample.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        _check_rate(from_hz)
        _check_rate(to_hz)
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._restart()

    def _restart(self) -> None:
        """As new: the buffer begins with the silence before the first sample."""
        self._filter = _filter(self.from_hz, self.to_hz)
        self._buffer = np.zeros(self._filter.before)
        self._skip = 0
        self._received = 0
        self._sent = 0

    def push(self, pcm: bytes, last: bool = False) -> bytes:
        """Take whole samples in; return those that are ready, with `last` all that are left.

        After `last` it is ready for another stream.
        """
        if self.from_hz == self.to_hz:
            return pcm
        if len(pcm) <= _PIECE:
            return self._take(pcm, last)
        return b"".join(
            self._take(pcm[at : at + _PIECE], last and at + _PIECE >= len(pcm)) for at in range(0, len(pcm), _PIECE)
        )

    def _take(self, pcm: bytes, last: bool) -> bytes:
        kernel = self._filter
        pieces = [self._buffer, np.frombuffer(pcm, "<i2")]
        if last:
            pieces.append(np.zeros(kernel.taps - kernel.before))
        self._buffer = np.concatenate(pieces)
        self._received += len(pcm) // 2
        ready = kernel.ready(len(self._buffer)) - self._skip
        if last:
            ready = (2 * self._received * kernel.up + kernel.down) // (2 * kernel.down) - self._sent
        out = kernel.apply(self._buffer, self._skip, ready).tobytes() if ready > 0 else b""
        if last:
            self._restart()
        else:
            self._advance(max(ready, 0))
        return out

    def _advance(self, count: int) -> None:
        """Let go of the input that no later output needs: up to the block in which the next output lies."""
        blocks, self._skip = divmod(self._skip + count, self._filter.block)
        self._buffer = self._buffer[blocks * self._filter.step :]
        self._sent += count


_ZEROS = 24
_KAISER = 8.0
_PASS = 0.92
_MAX_PHASES = 1024
# Bytes taken at once: what is laid out for the filter can be a thousand times as much.
_PIECE = 1 << 13


class _Filter:
    """The filter of one pair of rates. Outputs come in blocks: `block` outputs for each `step` inputs.

    Output k looks at `taps` inputs from position k * down // up of the buffer. Coefficients are whole multiples of
    2**-24, so every sum of products with 16-bit samples is exact in float64, in whatever order BLAS adds them up.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = np.gcd(from_hz, to_hz)
        self.up, self.down = int(to_hz // common), int(from_hz // common)
        reach = -(-_ZEROS * max(self.up, self.down) // self.up)
        self.before, self.taps = reach - 1, 2 * reach
        repeat = max(1, 8 // self.up)
        self.block, self.step = self.up * repeat, self.down * repeat
        # The narrower the band, the coarser may the phases be.
        self.phases = min(self.up, -(-_MAX_PHASES * min(self.up, self.down) // self.down))
        self._table = self._design(min(1.0, self.up / self.down))
        self._matrix = self._banded() if self.up <= 320 else None

    def _design(self, bandwidth: float) -> NDArray[np.float64]:
        """Coefficients as [phase, tap]; each phase passes DC unchanged."""
        at = np.arange(-self.before, self.taps - self.before) - np.arange(self.phases)[:, None] / self.phases
        width = bandwidth * _PASS
        inside = np.clip(1 - (at * bandwidth / _ZEROS) ** 2, 0, None)
        table = width * np.sinc(width * at) * np.i0(_KAISER * np.sqrt(inside)) / np.i0(_KAISER)
        table /= table.sum(axis=1, keepdims=True)
        exact: NDArray[np.float64] = np.rint(table * 2**24) / 2**24
        return exact

    def _banded(self) -> NDArray[np.float64]:
        """One block as a matrix [inputs, outputs]: many short filters become one product."""
        matrix = np.zeros(((self.block - 1) * self.down // self.up + self.taps, self.block))
        for k in range(self.block):
            at, phase = divmod(k * self.down, self.up)
            matrix[at : at + self.taps, k] = self._table[phase]
        return matrix

    def ready(self, length: int) -> int:
        """How many outputs from the start of a buffer of `length` inputs have all that they look at."""
        return max(0, -(-(length - self.taps + 1) * self.up // self.down))

    def apply(self, buffer: NDArray[np.float64], skip: int, count: int) -> Samples:
        """Outputs `skip` to `skip + count` of a buffer; inputs beyond its end are silence."""
        if self._matrix is None:
            at, rest = np.divmod(np.arange(skip, skip + count) * self.down, self.up)
            windows = np.lib.stride_tricks.sliding_window_view(_padded(buffer, int(at[-1]) + self.taps), self.taps)
            return _to_int16(np.einsum("kt,kt->k", windows[at], self._table[rest * self.phases // self.up]))
        blocks = -(-(skip + count) // self.block)
        width = len(self._matrix)
        buffer = _padded(buffer, (blocks - 1) * self.step + width)
        windows = np.ndarray((blocks, width), np.float64, buffer, strides=(8 * self.step, 8))
        return _to_int16((windows @ self._matrix).reshape(-1)[skip : skip + count])


@lru_cache(maxsize=16)
def _filter(from_hz: int, to_hz: int) -> _Filter:
    return _Filter(from_hz, to_hz)


def _padded(buffer: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return buffer if len(buffer) >= length else np.concatenate((buffer, np.zeros(length - len(buffer))))


def _to_int16(samples: NDArray[np.floating[Any]]) -> Samples:
    pcm: Samples = np.minimum(np.maximum(np.rint(samples), -32768), 32767).astype(np.int16)
    return pcm


# --- files ----------------------------------------------------------------------------------------


def _decode_file(data: bytes, max_seconds: float) -> AudioChunk:
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        return _decode_by_libsndfile(data, max_seconds)
    tag, channels, rate, bits, body = _wav_chunks(data)
    _check_rate(rate)
    if not 1 <= channels <= MAX_CHANNELS:
        raise _invalid(f"WAV with {channels} channels")
    frame = channels * bits // 8
    body = body[: len(body) // frame * frame] if frame else b""
    if frame and len(body) // frame > max_seconds * rate:
        raise _too_long(max_seconds)
    samples = _wav_samples(tag, bits, body)
    if samples is None:
        return _decode_by_libsndfile(data, max_seconds)
    return AudioChunk(downmix(samples, channels).tobytes(), rate)


def _wav_chunks(data: bytes) -> tuple[int, int, int, int, bytes]:
    """Format tag, channels, Hz, bits and sample bytes. Lengths are believed only as far as there are bytes, and a
    length of 0 or 2**32-1, as programs write that stream, means: to the end."""
    at, form = 12, b""
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data" and len(form) >= 16:
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
            if tag == 0xFFFE and len(form) >= 26:
                (tag,) = struct.unpack_from("<H", form, 24)
            return tag, channels, rate, bits, data[at : at + size] if size else data[at:]
        if name == b"fmt ":
            form = data[at : at + size]
        at += size + (size & 1)
    raise _invalid("WAV without samples")


def _wav_samples(tag: int, bits: int, body: bytes) -> Samples | None:
    """Interleaved samples as PCM16; None for encodings not known here."""
    match tag, bits:
        case 1, 8:
            return (np.frombuffer(body, np.uint8).astype(np.int16) - 128) << 8
        case 1, 16:
            return np.frombuffer(body, np.int16)
        case 1, 24:
            return np.frombuffer(body, np.uint8).reshape(-1, 3)[:, 1:].copy().view(np.int16).reshape(-1)
        case 1, 32:
            return (np.frombuffer(body, "<i4") >> 16).astype(np.int16)
        case 3, (32 | 64):
            return np.frombuffer(float_to_pcm(np.frombuffer(body, f"<f{bits // 8}")), "<i2")
        case 6, 8:
            return np.frombuffer(alaw_decode(body), "<i2")
        case 7, 8:
            return np.frombuffer(ulaw_decode(body), "<i2")
    return None


def _decode_by_libsndfile(data: bytes, max_seconds: float) -> AudioChunk:
    # Here, because it takes 30 ms to import and few clients send anything but WAV and PCM.
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            # One frame more than is allowed, so that a small file cannot unfold into hours.
            samples = file.read(int(max_seconds * rate) + 1, dtype="int16")
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise _invalid("Undecodable audio") from error
    return AudioChunk(downmix(samples.reshape(-1), channels).tobytes(), rate)


def _check_rate(rate: int) -> None:
    if not MIN_HZ <= rate <= MAX_HZ:
        raise _invalid(f"Sample rate {rate} Hz; {MIN_HZ} to {MAX_HZ} Hz can be used")


def _invalid(message: str) -> InputError:
    return InputError(message, code="invalid_audio")


def _too_long(max_seconds: float) -> InputError:
    return InputError(f"More than {max_seconds:g} s of audio", code="invalid_audio", status=413)
