"""From one sample rate to another, piece by piece: a polyphase filter in numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echosight.audio.pcm import Samples, to_int16
from echosight.errors import InputError
from echosight.media import AudioChunk

MIN_HZ, MAX_HZ = 4_000, 192_000


def resample(chunk: AudioChunk, rate: int) -> AudioChunk:
    """A whole recording at another rate."""
    return AudioChunk(Resampler(chunk.rate, rate).push(chunk.pcm, last=True), rate)


class Resampler:
    """PCM16 at one rate into PCM16 at another, piece by piece, with a few milliseconds of look-ahead at most.

    A polyphase windowed-sinc filter: `_ZEROS` zero crossings of the lower rate on each side, which is also what it
    holds back (1.5 ms where the lower rate is 16 kHz). How the input is cut into pieces does not change a bit of the
    output, and the n-th output lies at the same instant as in one piece. Lengths are rounded to the nearest sample
    (up, where `prompt`).

    `prompt`: nothing is held back. Every output is there with the last input at or before its instant, by a filter of
    the same bands and minimum phase, which is 0.1 to 0.3 ms late. For ears: what is heard cannot wait for the next
    packet, 20 ms away, because a window of the VAD lacks a sample.
    """

    def __init__(self, from_hz: int, to_hz: int, *, prompt: bool = False) -> None:
        check_rate(from_hz)
        check_rate(to_hz)
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._filter = _filter(from_hz, to_hz, prompt)
        self._restart()

    def _restart(self) -> None:
        """As new: the buffer begins with the silence before the first sample."""
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
        held_back = last and not kernel.prompt
        if held_back:
            pieces.append(np.zeros(kernel.taps - kernel.before))
        self._buffer = np.concatenate(pieces)
        self._received += len(pcm) // 2
        ready = kernel.ready(len(self._buffer)) - self._skip
        if held_back:
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

    Output k looks at `taps` inputs from position k * down // up of the buffer, which begins with `before` zeros: half
    as many as there are taps, or, in a `prompt` filter, all but one. Coefficients are whole multiples of 2**-24, so
    every sum of products with 16-bit samples is exact in float64, in whatever order BLAS adds them up.
    """

    def __init__(self, from_hz: int, to_hz: int, prompt: bool) -> None:
        common = np.gcd(from_hz, to_hz)
        self.up, self.down = int(to_hz // common), int(from_hz // common)
        reach = -(-_ZEROS * max(self.up, self.down) // self.up)
        self.before, self.taps = reach - 1, 2 * reach
        repeat = max(1, 8 // self.up)
        self.block, self.step = self.up * repeat, self.down * repeat
        # The narrower the band, the coarser may the phases be.
        self.phases = min(self.up, -(-_MAX_PHASES * min(self.up, self.down) // self.down))
        table = self._design(min(1.0, self.up / self.down))
        self.prompt = prompt
        if prompt:
            self.before = self.taps - 1
            table = _minimum_phase(table)
        # Each phase passes DC unchanged.
        self._table = np.rint(table / table.sum(axis=1, keepdims=True) * 2**24) / 2**24
        self._matrix = self._banded() if self.up <= 320 else None

    def _design(self, bandwidth: float) -> NDArray[np.float64]:
        """A windowed sinc as [phase, tap]."""
        at = np.arange(-self.before, self.taps - self.before) - np.arange(self.phases)[:, None] / self.phases
        width = bandwidth * _PASS
        inside = np.clip(1 - (at * bandwidth / _ZEROS) ** 2, 0, None)
        table: NDArray[np.float64] = width * np.sinc(width * at) * np.i0(_KAISER * np.sqrt(inside)) / np.i0(_KAISER)
        return table

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
            return to_int16(np.einsum("kt,kt->k", windows[at], self._table[rest * self.phases // self.up]))
        blocks = -(-(skip + count) // self.block)
        width = len(self._matrix)
        buffer = _padded(buffer, (blocks - 1) * self.step + width)
        windows = np.ndarray((blocks, width), np.float64, buffer, strides=(8 * self.step, 8))
        return to_int16((windows @ self._matrix).reshape(-1)[skip : skip + count])


@lru_cache(maxsize=16)
def _filter(from_hz: int, to_hz: int, prompt: bool) -> _Filter:
    return _Filter(from_hz, to_hz, prompt)


def _minimum_phase(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The filter [phase, tap] of the same magnitudes whose energy comes soonest, by folding its cepstrum.

    Oppenheim and Schafer, Discrete-Time Signal Processing, "Homomorphic deconvolution": causal in the cepstrum is
    minimum phase in time.
    """
    # The taps of all phases interleaved are the filter at the finer rate.
    fine = table[::-1].T.reshape(-1)
    size = 1 << (2 * len(fine)).bit_length()
    magnitude = np.abs(np.fft.rfft(fine, size))
    cepstrum = np.fft.irfft(np.log(np.maximum(magnitude, 1e-5 * magnitude.max())))
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    soonest = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[: len(fine)]
    # Backwards in time, as inputs lie in the buffer: phase p of tap t is `taps - 1 - t` inputs and p phases ago.
    return soonest.reshape(table.shape[::-1])[::-1].T


def _padded(buffer: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return buffer if len(buffer) >= length else np.concatenate((buffer, np.zeros(length - len(buffer))))


def check_rate(rate: int) -> None:
    """Raises `InputError`, ``invalid_audio``, for a rate beyond reason."""
    if not MIN_HZ <= rate <= MAX_HZ:
        raise InputError(f"Sample rate {rate} Hz; {MIN_HZ} to {MAX_HZ} Hz can be used", code="invalid_audio")
