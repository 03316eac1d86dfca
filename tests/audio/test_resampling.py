from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.resampling import Resampler, _filter, resample
from echosight.errors import InputError
from echosight.media import AudioChunk

RATES = (8_000, 11_025, 12_345, 16_000, 22_050, 24_000, 44_100, 48_000)
TONE = np.rint(8000 * np.sin(np.arange(4800) * 0.05)).astype("<i2")


def sine(hz: float, rate: int, samples: int) -> AudioChunk:
    return AudioChunk(
        np.rint(16_000 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).astype("<i2").tobytes(), rate
    )


def samples(chunk: AudioChunk) -> Any:
    return np.frombuffer(chunk.pcm, "<i2").astype(float)


@given(
    data=st.binary(max_size=4000).map(lambda b: b[: len(b) // 2 * 2]),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    from_hz=st.sampled_from(RATES),
    to_hz=st.sampled_from(RATES),
    causal=st.booleans(),
)
def test_chunk_sizes_do_not_change_the_output(
    data: bytes, cuts: list[int], from_hz: int, to_hz: int, causal: bool
) -> None:
    whole = Resampler(from_hz, to_hz, causal=causal).push(data, last=True)
    stream = Resampler(from_hz, to_hz, causal=causal)
    start, chunks = 0, []
    for cut in [*sorted(cuts), len(data)]:
        end = max(start, min(len(data), cut * 2))
        chunks.append(stream.push(data[start:end]))
        start = end
    chunks.append(stream.push(b"", last=True))
    assert b"".join(chunks) == whole
    exact = len(data) // 2 * to_hz / from_hz
    assert len(whole) // 2 == (math.ceil(exact) if causal else math.floor(exact + 0.5))


@pytest.mark.parametrize("to_hz", RATES)
@pytest.mark.parametrize("from_hz", RATES)
@pytest.mark.parametrize("hz", [200, 1000, 2900])
def test_a_tone_keeps_its_frequency_and_phase(from_hz: int, to_hz: int, hz: float) -> None:
    got = samples(resample(sine(hz, from_hz, from_hz // 2), to_hz))
    error = (got - samples(sine(hz, to_hz, len(got))))[200:-200]
    # Ratios of large numbers share 1024 phases, which still gives 60 dB.
    assert np.sqrt(np.mean(error**2)) < 16_000 / 1000


def test_frequencies_above_the_new_nyquist_rate_are_removed() -> None:
    got = samples(resample(sine(9_000, 48_000, 24_000), 16_000))
    assert np.abs(got[200:-200]).max() < 16


def test_a_long_push_equals_many_short_ones() -> None:
    long, whole, parts = TONE.tobytes() * 20, Resampler(44_100, 16_000), Resampler(44_100, 16_000)
    chunks = [parts.push(long[k : k + 1_000], last=k + 1_000 >= len(long)) for k in range(0, len(long), 1_000)]
    assert whole.push(long, last=True) == b"".join(chunks)
    assert sum(map(len, chunks)) // 2 == round(len(long) // 2 * 16_000 / 44_100)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(191_999, 4_001), (4_001, 192_000), (191_999, 191_998)])
def test_rates_without_a_common_divisor_need_no_more_memory(from_hz: int, to_hz: int) -> None:
    got = samples(resample(sine(500, from_hz, from_hz // 10), to_hz))
    assert len(got) == round(from_hz // 10 * to_hz / from_hz)
    inner = slice(len(got) // 10, -len(got) // 10)
    assert np.sqrt(np.mean((got - samples(sine(500, to_hz, len(got))))[inner] ** 2)) < 16
    assert _filter(from_hz, to_hz, False)._table.nbytes < 1 << 20


def test_the_look_ahead_is_a_few_milliseconds() -> None:
    for from_hz, to_hz, held_ms in ((24_000, 16_000, 1.5), (48_000, 16_000, 1.5), (8_000, 16_000, 3.0)):
        out = Resampler(from_hz, to_hz).push(bytes(2 * from_hz))
        assert 1000 - 1000 * (len(out) // 2) / to_hz == pytest.approx(held_ms, abs=0.1)


@given(chunks=st.lists(st.integers(0, 1000), max_size=12), from_hz=st.sampled_from(RATES))
def test_a_causal_resampler_has_no_look_ahead(chunks: list[int], from_hz: int) -> None:
    stream = Resampler(from_hz, 16_000, causal=True)
    received = returned = 0
    for size in chunks:
        received += size
        returned += len(stream.push(bytes(2 * size))) // 2
        assert returned == -(-received * 16_000 // from_hz)


@pytest.mark.parametrize("hz", [200, 1000, 2900])
@pytest.mark.parametrize("from_hz", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_a_causal_resampler_delays_by_a_fraction_of_a_millisecond(from_hz: int, hz: float) -> None:
    tone = sine(hz, from_hz, from_hz // 2)
    got = samples(AudioChunk(Resampler(from_hz, 16_000, causal=True).push(tone.pcm), 16_000))[400:]
    phase = np.angle(np.sum(got * np.exp(-2j * np.pi * hz * np.arange(400, 400 + len(got)) / 16_000)))
    delay_ms = -(phase + np.pi / 2) / (2 * np.pi * hz) * 1000 % (1000 / hz)
    assert 0 < delay_ms < 0.3
    assert np.abs(got).max() == pytest.approx(16_000, rel=0.02)


def test_a_causal_resampler_removes_frequencies_above_the_new_nyquist_rate() -> None:
    got = samples(AudioChunk(Resampler(48_000, 16_000, causal=True).push(sine(9_000, 48_000, 24_000).pcm), 16_000))
    assert np.abs(got[200:]).max() < 16


def test_after_the_last_chunk_a_new_stream_begins() -> None:
    stream = Resampler(24_000, 16_000)
    assert stream.push(TONE.tobytes(), last=True) == stream.push(TONE.tobytes(), last=True)


def test_overshoot_at_full_scale_is_clipped_and_does_not_wrap_around() -> None:
    square = np.repeat(np.array([32767, -32768] * 50, "<i2"), 24).tobytes()
    got = samples(resample(AudioChunk(square, 24_000), 16_000))
    assert got.max() == 32767
    assert got.min() == -32768
    assert np.abs(np.diff(got)).max() < 65_536


@pytest.mark.parametrize("rate", [0, -1, 3_999, 192_001, 10**9])
def test_sample_rates_out_of_range_are_refused(rate: int) -> None:
    with pytest.raises(InputError, match="Sample rate"):
        Resampler(rate, 16_000)
