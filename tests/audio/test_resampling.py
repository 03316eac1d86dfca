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
    prompt=st.booleans(),
)
def test_pieces_change_nothing(data: bytes, cuts: list[int], from_hz: int, to_hz: int, prompt: bool) -> None:
    whole = Resampler(from_hz, to_hz, prompt=prompt).push(data, last=True)
    stream = Resampler(from_hz, to_hz, prompt=prompt)
    at, pieces = 0, []
    for cut in [*sorted(cuts), len(data)]:
        end = max(at, min(len(data), cut * 2))
        pieces.append(stream.push(data[at:end]))
        at = end
    pieces.append(stream.push(b"", last=True))
    assert b"".join(pieces) == whole
    exact = len(data) // 2 * to_hz / from_hz
    assert len(whole) // 2 == (math.ceil(exact) if prompt else math.floor(exact + 0.5))


@pytest.mark.parametrize("to_hz", RATES)
@pytest.mark.parametrize("from_hz", RATES)
@pytest.mark.parametrize("hz", [200, 1000, 2900])
def test_a_tone_stays_the_tone_at_its_time(from_hz: int, to_hz: int, hz: float) -> None:
    got = samples(resample(sine(hz, from_hz, from_hz // 2), to_hz))
    error = (got - samples(sine(hz, to_hz, len(got))))[200:-200]
    # Awkward ratios share 1024 phases, which is still 60 dB.
    assert np.sqrt(np.mean(error**2)) < 16_000 / 1000


def test_what_cannot_be_kept_is_removed() -> None:
    got = samples(resample(sine(9_000, 48_000, 24_000), 16_000))
    assert np.abs(got[200:-200]).max() < 16


def test_a_long_push_is_many_short_ones() -> None:
    long, whole, parts = TONE.tobytes() * 20, Resampler(44_100, 16_000), Resampler(44_100, 16_000)
    pieces = [parts.push(long[at : at + 1_000], last=at + 1_000 >= len(long)) for at in range(0, len(long), 1_000)]
    assert whole.push(long, last=True) == b"".join(pieces)
    assert sum(map(len, pieces)) // 2 == round(len(long) // 2 * 16_000 / 44_100)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(191_999, 4_001), (4_001, 192_000), (191_999, 191_998)])
def test_rates_without_a_common_divisor_cost_no_more(from_hz: int, to_hz: int) -> None:
    got = samples(resample(sine(500, from_hz, from_hz // 10), to_hz))
    assert len(got) == round(from_hz // 10 * to_hz / from_hz)
    inner = slice(len(got) // 10, -len(got) // 10)
    assert np.sqrt(np.mean((got - samples(sine(500, to_hz, len(got))))[inner] ** 2)) < 16
    assert _filter(from_hz, to_hz, False)._table.nbytes < 1 << 20


def test_it_holds_back_little() -> None:
    for from_hz, to_hz, held_ms in ((24_000, 16_000, 1.5), (48_000, 16_000, 1.5), (8_000, 16_000, 3.0)):
        out = Resampler(from_hz, to_hz).push(bytes(2 * from_hz))
        assert 1000 - 1000 * (len(out) // 2) / to_hz == pytest.approx(held_ms, abs=0.1)


@given(pieces=st.lists(st.integers(0, 1000), max_size=12), from_hz=st.sampled_from(RATES))
def test_what_is_prompt_holds_back_nothing(pieces: list[int], from_hz: int) -> None:
    stream = Resampler(from_hz, 16_000, prompt=True)
    taken = given_back = 0
    for size in pieces:
        taken += size
        given_back += len(stream.push(bytes(2 * size))) // 2
        assert given_back == -(-taken * 16_000 // from_hz)


@pytest.mark.parametrize("hz", [200, 1000, 2900])
@pytest.mark.parametrize("from_hz", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_what_is_prompt_is_late_by_a_fraction_of_a_millisecond(from_hz: int, hz: float) -> None:
    tone = sine(hz, from_hz, from_hz // 2)
    got = samples(AudioChunk(Resampler(from_hz, 16_000, prompt=True).push(tone.pcm), 16_000))[400:]
    phase = np.angle(np.sum(got * np.exp(-2j * np.pi * hz * np.arange(400, 400 + len(got)) / 16_000)))
    late_ms = -(phase + np.pi / 2) / (2 * np.pi * hz) * 1000 % (1000 / hz)
    assert 0 < late_ms < 0.3
    assert np.abs(got).max() == pytest.approx(16_000, rel=0.02)


def test_what_is_prompt_keeps_as_little_of_what_cannot_be_kept() -> None:
    got = samples(AudioChunk(Resampler(48_000, 16_000, prompt=True).push(sine(9_000, 48_000, 24_000).pcm), 16_000))
    assert np.abs(got[200:]).max() < 16


def test_after_the_last_piece_it_begins_anew() -> None:
    stream = Resampler(24_000, 16_000)
    assert stream.push(TONE.tobytes(), last=True) == stream.push(TONE.tobytes(), last=True)


def test_full_scale_is_clipped_not_wrapped() -> None:
    square = np.repeat(np.array([32767, -32768] * 50, "<i2"), 24).tobytes()
    got = samples(resample(AudioChunk(square, 24_000), 16_000))
    assert got.max() == 32767
    assert got.min() == -32768
    assert np.abs(np.diff(got)).max() < 65_536


@pytest.mark.parametrize("rate", [0, -1, 3_999, 192_001, 10**9])
def test_rates_beyond_reason_are_refused(rate: int) -> None:
    with pytest.raises(InputError, match="Sample rate"):
        Resampler(rate, 16_000)
