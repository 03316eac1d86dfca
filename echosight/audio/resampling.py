"""Sample rate conversion of streams: a polyphase windowed-sinc filter in numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echosight.audio.pcm import PcmSamples, to_int16
from echosight.errors import InputError
from echosight.media import AudioChunk

__all__ = ["MAX_HZ", "MIN_HZ", "Resampler", "check_rate", "resample"]

MIN_HZ, MAX_HZ = 4_000, 192_000


def resample(chunk: AudioChunk, rate: int) -> AudioChunk:
    """A whole recording at `rate` Hz. Raises `InputError` for rates outside of `MIN_HZ` to `MAX_HZ`."""
    return AudioChunk(Resampler(chunk.rate, rate).push(chunk.pcm, last=True), rate)


class Resampler:
    """Converts a stream of mono PCM16 from one rate to another, chunk by chunk.

    A linear-phase polyphase windowed-sinc filter with `_ZEROS` zero crossings of the lower rate on each side. Its
    look-ahead is the same length: 1.5 ms where the lower rate is 16 kHz. Chunk sizes do not change any bit of the
    output, and each output sample keeps its time. The total length is rounded to the nearest sample (up if `causal`).

    `causal`: a minimum-phase filter of the same magnitude response without look-ahead; it delays the signal by 0.1 to
    0.3 ms. Use it for the VAD: if a window lacked one sample, it would wait for the next packet, often 20 ms.

    Raises `InputError` for rates outside of `MIN_HZ` to `MAX_HZ`.
    """

    def __init__(self, from_hz: int, to_hz: int, *, causal: bool = False) -> None:
        check_rate(from_hz)
        check_rate(to_hz)
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._filter = _filter(from_hz, to_hz, causal)
        self._reset()

    def _reset(self) -> None:
        """Start a new stream: the buffer begins with the silence before the first sample."""
        self._buffer = np.zeros(self._filter.history)
        self._skip = 0
        self._received = 0
        self._sent = 0

    def push(self, pcm: bytes, last: bool = False) -> bytes:
        """Add whole samples of PCM16; returns the samples that are complete. `last` flushes the rest and resets."""
        if self.from_hz == self.to_hz:
            return pcm
        if len(pcm) <= _BLOCK_BYTES:
            return self._convert(pcm, last)
        return b"".join(
            self._convert(pcm[start : start + _BLOCK_BYTES], last and start + _BLOCK_BYTES >= len(pcm))
            for start in range(0, len(pcm), _BLOCK_BYTES)
        )

    def _convert(self, pcm: bytes, last: bool) -> bytes:
        fir = self._filter
        parts = [self._buffer, np.frombuffer(pcm, "<i2")]
        flush = last and not fir.causal
        if flush:
            parts.append(np.zeros(fir.taps - fir.history))
        self._buffer = np.concatenate(parts)
        self._received += len(pcm) // 2
        ready = fir.ready(len(self._buffer)) - self._skip
        if flush:
            ready = (2 * self._received * fir.up + fir.down) // (2 * fir.down) - self._sent
        out = fir.apply(self._buffer, self._skip, ready).tobytes() if ready > 0 else b""
        if last:
            self._reset()
        else:
            self._advance(max(ready, 0))
        return out

    def _advance(self, count: int) -> None:
        """Drop the input that no later output needs: all before the block that contains the next output."""
        blocks, self._skip = divmod(self._skip + count, self._filter.block)
        self._buffer = self._buffer[blocks * self._filter.step :]
        self._sent += count


_ZEROS = 24
_KAISER = 8.0
_PASS = 0.92
_MAX_PHASES = 1024
# Bytes converted at once: the filter's intermediate arrays can be a thousand times larger.
_BLOCK_BYTES = 1 << 13


class _Filter:
    """The filter for one pair of rates. It works in blocks: `block` outputs for each `step` inputs.

    Output k reads `taps` inputs from index k * down // up of the buffer. The buffer begins with `history` zeros: half
    the number of taps, or all but one of them if `causal`. Coefficients are whole multiples of 2**-24, so every sum of
    products with 16-bit samples is exact in float64, whatever the order in which BLAS adds them.
    """

    def __init__(self, from_hz: int, to_hz: int, causal: bool) -> None:
        common = np.gcd(from_hz, to_hz)
        self.up, self.down = int(to_hz // common), int(from_hz // common)
        reach = -(-_ZEROS * max(self.up, self.down) // self.up)
        self.history, self.taps = reach - 1, 2 * reach
        repeat = max(1, 8 // self.up)
        self.block, self.step = self.up * repeat, self.down * repeat
        # A narrower band needs fewer phases.
        self.phases = min(self.up, -(-_MAX_PHASES * min(self.up, self.down) // self.down))
        table = self._design(min(1.0, self.up / self.down))
        self.causal = causal
        if causal:
            self.history = self.taps - 1
            table = _minimum_phase(table)
        # Normalised so that each phase has unity gain at 0 Hz.
        self._table = np.rint(table / table.sum(axis=1, keepdims=True) * 2**24) / 2**24
        self._matrix = self._banded() if self.up <= 320 else None

    def _design(self, bandwidth: float) -> NDArray[np.float64]:
        """A Kaiser-windowed sinc, float64 [phase, tap]."""
        time = np.arange(-self.history, self.taps - self.history) - np.arange(self.phases)[:, None] / self.phases
        width = bandwidth * _PASS
        kaiser = np.i0(_KAISER * np.sqrt(np.clip(1 - (time * bandwidth / _ZEROS) ** 2, 0, None)))
        table: NDArray[np.float64] = width * np.sinc(width * time) * kaiser / np.i0(_KAISER)
        return table

    def _banded(self) -> NDArray[np.float64]:
        """The filters of one block as a matrix [inputs, outputs], so that a block is a single matrix product."""
        matrix = np.zeros(((self.block - 1) * self.down // self.up + self.taps, self.block))
        for k in range(self.block):
            start, phase = divmod(k * self.down, self.up)
            matrix[start : start + self.taps, k] = self._table[phase]
        return matrix

    def ready(self, length: int) -> int:
        """The number of outputs whose inputs are all in a buffer of `length` inputs."""
        return max(0, -(-(length - self.taps + 1) * self.up // self.down))

    def apply(self, buffer: NDArray[np.float64], skip: int, count: int) -> PcmSamples:
        """Outputs `skip` to `skip + count` of a buffer; inputs beyond its end count as silence."""
        if self._matrix is None:
            starts, rest = np.divmod(np.arange(skip, skip + count) * self.down, self.up)
            windows = np.lib.stride_tricks.sliding_window_view(_padded(buffer, int(starts[-1]) + self.taps), self.taps)
            return to_int16(np.einsum("kt,kt->k", windows[starts], self._table[rest * self.phases // self.up]))
        blocks = -(-(skip + count) // self.block)
        width = len(self._matrix)
        buffer = _padded(buffer, (blocks - 1) * self.step + width)
        windows = np.ndarray((blocks, width), np.float64, buffer, strides=(8 * self.step, 8))
        return to_int16((windows @ self._matrix).reshape(-1)[skip : skip + count])


@lru_cache(maxsize=16)
def _filter(from_hz: int, to_hz: int, causal: bool) -> _Filter:
    return _Filter(from_hz, to_hz, causal)


def _minimum_phase(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The minimum-phase filter [phase, tap] of the same magnitude response, by folding the cepstrum.

    Source: Oppenheim and Schafer, Discrete-Time Signal Processing, chapter "Cepstrum Analysis and Homomorphic
    Deconvolution": a sequence is minimum phase if its complex cepstrum is causal.
    """
    # Interleaved, the taps of all phases are the filter at the higher rate.
    fine = table[::-1].T.reshape(-1)
    size = 1 << (2 * len(fine)).bit_length()
    magnitude = np.abs(np.fft.rfft(fine, size))
    cepstrum = np.fft.irfft(np.log(np.maximum(magnitude, 1e-5 * magnitude.max())))
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    minimum = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[: len(fine)]
    # Reversed in time, as the inputs lie in the buffer: phase p of tap t is `taps - 1 - t` inputs and p phases ago.
    return minimum.reshape(table.shape[::-1])[::-1].T


def _padded(buffer: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return buffer if len(buffer) >= length else np.concatenate((buffer, np.zeros(length - len(buffer))))


def check_rate(rate: int) -> None:
    """Raises `InputError` ``invalid_audio`` for a rate outside of `MIN_HZ` to `MAX_HZ`."""
    if not MIN_HZ <= rate <= MAX_HZ:
        raise InputError(
            f"Sample rate {rate} Hz is not supported; expected {MIN_HZ} to {MAX_HZ} Hz", code="invalid_audio"
        )
