"""Sound as bytes: PCM, WAV and whatever libsndfile reads, brought to mono PCM16."""

from __future__ import annotations

import io
import struct

import numpy as np

from echosight.audio.g711 import alaw_decode, ulaw_decode
from echosight.audio.pcm import Samples, downmix, float_to_pcm
from echosight.audio.resampling import check_rate
from echosight.errors import InputError
from echosight.media import AudioChunk

MAX_CHANNELS = 32

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
    check_rate(chunk.rate)
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


# --- files ----------------------------------------------------------------------------------------


def _decode_file(data: bytes, max_seconds: float) -> AudioChunk:
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        return _decode_by_libsndfile(data, max_seconds)
    tag, channels, rate, bits, body = _wav_chunks(data)
    check_rate(rate)
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


def _invalid(message: str) -> InputError:
    return InputError(message, code="invalid_audio")


def _too_long(max_seconds: float) -> InputError:
    return InputError(f"More than {max_seconds:g} s of audio", code="invalid_audio", status=413)
