"""Opus packets: what is encoded comes back, at any rate, and a broken packet breaks nothing."""

from __future__ import annotations

import numpy as np
import pytest

from echosight.errors import InputError

pytest.importorskip("av")

from echosight.audio.opus import FRAME_MS, OPUS_RATES, OpusDecoder, OpusEncoder


def tone(rate: int, seconds: float = 1.2) -> bytes:
    t = np.arange(int(rate * seconds)) / rate
    return bytes((8000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes())


def loudest_hz(pcm: bytes, rate: int) -> float:
    samples = np.frombuffer(pcm, "<i2")
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


@pytest.mark.parametrize("rate", OPUS_RATES)
def test_a_tone_survives_at_every_rate(rate: int) -> None:
    encoder, decoder = OpusEncoder(rate), OpusDecoder(16_000)
    packets = [*encoder.push(tone(rate)), *encoder.flush()]
    assert len(packets) == 1200 // FRAME_MS
    pcm = b"".join(decoder.decode(packet) for packet in packets)
    assert abs(len(pcm) - 2 * 16_000 * 1.2) < 2 * 16_000 * 0.02
    assert abs(loudest_hz(pcm, 16_000) - 440) < 3
    assert np.abs(np.frombuffer(pcm, "<i2")[8_000:16_000]).max() > 5000


def test_pieces_of_any_size_give_the_same_packets() -> None:
    whole, pieces = OpusEncoder(16_000), OpusEncoder(16_000)
    pcm = tone(16_000)
    packets = [packet for start in range(0, len(pcm), 346) for packet in pieces.push(pcm[start : start + 346])]
    assert packets == whole.push(pcm)


@pytest.mark.parametrize("broken", [b"", b"\xff", b"\3", bytes(9000)])
def test_a_broken_packet_is_refused_and_later_ones_are_decoded(broken: bytes) -> None:
    packets = OpusEncoder(16_000).push(tone(16_000))
    decoder = OpusDecoder(16_000)
    decoder.decode(packets[0])
    with pytest.raises(InputError) as refused:
        decoder.decode(broken)
    assert refused.value.code == "invalid_audio"
    assert sum(len(decoder.decode(packet)) for packet in packets[1:]) > 2 * 16_000


def test_what_does_not_fill_a_frame_can_be_dropped() -> None:
    encoder = OpusEncoder(16_000)
    encoder.push(bytes(100))
    encoder.clear()
    assert encoder.flush() == []
