from __future__ import annotations

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.formats import decode_audio, wav_bytes, wav_header
from echosight.audio.g711 import alaw_decode, alaw_encode, ulaw_decode, ulaw_encode
from echosight.audio.pcm import downmix, float_to_pcm, pcm_to_float
from echosight.errors import InputError
from echosight.media import AudioChunk

TONE = np.rint(8000 * np.sin(np.arange(4800) * 0.05)).astype("<i2")


def samples(chunk: AudioChunk) -> Any:
    return np.frombuffer(chunk.pcm, "<i2").astype(float)


def file_bytes(data: Any, rate: int, **kind: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, data, rate, **kind)
    return out.getvalue()


# --- G.711 ----------------------------------------------------------------------------------------


def test_g711_decodes_to_the_levels_of_the_standard() -> None:
    # From the tables of ITU-T G.711, scaled to 16 bits.
    assert np.frombuffer(ulaw_decode(bytes([0x80, 0x00, 0xFF, 0x7F, 0xF0])), "<i2").tolist() == [
        32124,
        -32124,
        0,
        0,
        120,
    ]
    assert np.frombuffer(alaw_decode(bytes([0xAA, 0x2A, 0xD5, 0x55])), "<i2").tolist() == [32256, -32256, 8, -8]
    assert (ulaw_encode(bytes(2)), alaw_encode(bytes(2))) == (b"\xff", b"\xd5")


@pytest.mark.parametrize(("encode", "decode"), [(ulaw_encode, ulaw_decode), (alaw_encode, alaw_decode)])
def test_g711_encodes_to_the_nearest_level(encode: Any, decode: Any) -> None:
    values = np.arange(-32768, 32768)
    levels = np.frombuffer(decode(bytes(range(256))), "<i2").astype(int)
    decoded = np.frombuffer(decode(encode(values.astype("<i2").tobytes())), "<i2").astype(int)
    nearest = np.min([np.abs(values - level) for level in levels], axis=0)
    assert np.array_equal(np.abs(decoded - values), nearest)


# --- files ----------------------------------------------------------------------------------------


def test_the_standard_library_reads_our_wav() -> None:
    chunk = AudioChunk(TONE.tobytes(), 24_000)
    data = wav_bytes(chunk)
    assert len(data) == 44 + len(chunk.pcm)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.readframes(file.getnframes()) == chunk.pcm
    assert decode_audio(data) == chunk


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_wav_encoding_is_decoded(subtype: str, channels: int) -> None:
    data = np.repeat(TONE[:, None] / 32768, channels, axis=1)
    chunk = decode_audio(file_bytes(data, 44_100, format="WAV", subtype=subtype))
    assert (chunk.rate, chunk.samples) == (44_100, len(TONE))
    coarse = {"PCM_U8": 256, "ULAW": 300, "ALAW": 300}
    assert np.abs(samples(chunk) - TONE).max() <= coarse.get(subtype, 1)


def test_extensible_and_adpcm_wavs_are_decoded() -> None:
    assert decode_audio(file_bytes(TONE, 16_000, format="WAVEX", subtype="PCM_16")).pcm == TONE.tobytes()
    adpcm = decode_audio(file_bytes(TONE, 16_000, format="WAV", subtype="IMA_ADPCM"))
    assert np.corrcoef(samples(adpcm)[: len(TONE)], TONE)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("kind", "name"), [("FLAC", "flac"), ("OGG", "audio/ogg; codecs=vorbis"), ("MP3", "mp3"), ("FLAC", "wav")]
)
def test_compressed_files_are_decoded(kind: str, name: str) -> None:
    long = np.tile(TONE, 5)
    chunk = decode_audio(file_bytes(long, 24_000, format=kind), name)
    assert chunk.rate == 24_000
    assert chunk.samples == pytest.approx(len(long), abs=2400)
    assert np.corrcoef(samples(chunk)[2000:8000], long[2000:8000])[0, 1] > 0.8


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFDB, 10**6])
def test_a_streamed_or_truncated_wav_is_read_to_its_end(size: int) -> None:
    header = bytearray(wav_header(16_000, 0))
    struct.pack_into("<I", header, 40, size)
    assert decode_audio(bytes(header) + TONE.tobytes() + b"\x01").pcm == TONE.tobytes()


def test_other_chunks_around_the_samples_are_skipped() -> None:
    data = wav_header(16_000, len(TONE) * 2)
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    assert decode_audio(data[:36] + odd + data[36:] + TONE.tobytes() + odd).pcm == TONE.tobytes()


def test_a_wav_is_recognised_by_its_first_bytes() -> None:
    assert decode_audio(wav_bytes(AudioChunk(TONE.tobytes(), 8_000)), "pcm16", 48_000).rate == 8_000


def test_headerless_formats_are_decoded() -> None:
    pcm = TONE.tobytes()
    assert decode_audio(pcm + b"x", "pcm16", 24_000) == AudioChunk(pcm, 24_000)
    assert decode_audio(pcm, "audio/pcm").rate == 16_000
    assert decode_audio(ulaw_encode(pcm), "g711_ulaw") == AudioChunk(ulaw_decode(ulaw_encode(pcm)), 8_000)
    assert decode_audio(alaw_encode(pcm), "audio/PCMA", 16_000).rate == 16_000
    assert decode_audio(b"", "pcm") == AudioChunk(b"", 16_000)


def test_pcm_survives_the_conversion_to_float_and_back() -> None:
    assert float_to_pcm(pcm_to_float(TONE.tobytes())) == TONE.tobytes()
    assert np.frombuffer(float_to_pcm(np.array([2.0, -2.0, np.nan, np.inf])), "<i2").tolist() == [
        32767,
        -32768,
        0,
        32767,
    ]


def test_downmix_is_the_mean() -> None:
    assert downmix(np.array([10, 20, 32767, 32767], np.int16), 2).tolist() == [15, 32767]


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"", "wav"), (b"RIFF", "wav"), (wav_header(16_000, 8)[:30], "wav"), (b"nonsense" * 20, "mp3"), (b"\0\0", "webm")],
)
def test_undecodable_audio_is_refused(data: bytes, name: str) -> None:
    with pytest.raises(InputError) as refused:
        decode_audio(data, name)
    assert (refused.value.code, refused.value.status) == ("invalid_audio", 400)


@pytest.mark.parametrize("rate", [0, -1, 3_999, 192_001, 10**9])
def test_sample_rates_out_of_range_are_refused(rate: int) -> None:
    with pytest.raises(InputError, match="Sample rate"):
        decode_audio(b"\0\0", "pcm16", rate)


def test_audio_longer_than_the_limit_is_refused() -> None:
    second = AudioChunk(bytes(32_000), 16_000)
    for data, name in (
        (second.pcm, "pcm"),
        (wav_bytes(second), "wav"),
        (file_bytes(np.zeros(16_000), 16_000, format="FLAC"), "flac"),
    ):
        assert decode_audio(data, name, max_seconds=1).seconds == 1
        with pytest.raises(InputError) as refused:
            decode_audio(data, name, max_seconds=0.99)
        assert refused.value.status == 413


@given(st.binary(max_size=200), st.sampled_from(["wav", "pcm", "flac", "ogg", "g711_alaw", "x"]), st.booleans())
def test_any_bytes_give_audio_or_an_input_error(data: bytes, name: str, riff: bool) -> None:
    try:
        chunk = decode_audio(wav_header(16_000, 100)[:20] + data if riff else data, name)
    except InputError as refused:
        assert refused.code == "invalid_audio"
    else:
        assert len(chunk.pcm) == 2 * chunk.samples
