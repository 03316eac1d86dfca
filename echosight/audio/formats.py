"""Audio that clients send (PCM, G.711, WAV, compressed files) to mono PCM16, and PCM16 to WAV."""

from __future__ import annotations

import struct

import numpy as np

from echosight.audio.codecs import decode_file
from echosight.audio.g711 import alaw_decode, ulaw_decode
from echosight.audio.pcm import PcmSamples, downmix, float_to_pcm
from echosight.audio.resampling import check_rate
from echosight.errors import InputError
from echosight.media import AudioChunk

__all__ = ["MAX_CHANNELS", "decode_audio", "wav_bytes", "wav_header"]

MAX_CHANNELS = 32

_PCM = {"pcm", "pcm16", "raw", "s16le", "l16"}
_ULAW = {"g711_ulaw", "ulaw", "mulaw", "pcmu"}
_ALAW = {"g711_alaw", "alaw", "pcma"}
_FILES = {"wav", "wave", "mp3", "mpeg", "flac", "ogg", "opus", "vorbis", "aiff", "aif", "au", "caf"}
_SUPPORTED = "wav, flac, ogg, opus, mp3, aiff, au, caf, pcm16, g711_ulaw, g711_alaw"


def decode_audio(
    data: bytes, format: str = "wav", sample_rate: int | None = None, *, max_seconds: float = 600
) -> AudioChunk:
    """Audio in any supported format as mono PCM16 at its own rate.

    `format` is a short name or a media type. A WAV is recognised by its first bytes, whatever `format` says; headerless
    formats need `sample_rate` in Hz (None: 16000 for PCM, 8000 for G.711).
    Raises `InputError` ``invalid_audio``, with status 413 for more than `max_seconds`.
    """
    name = format.lower().partition(";")[0].rpartition("/")[2].removeprefix("x-")
    if data[:4] in (b"RIFF", b"RF64") or name in _FILES:
        chunk = _decode_wav(data, max_seconds) if _is_wav(data) else decode_file(data, max_seconds)
    elif name in _PCM:
        chunk = AudioChunk(data[: len(data) // 2 * 2], 16_000 if sample_rate is None else sample_rate)
    elif name in _ULAW:
        chunk = AudioChunk(ulaw_decode(data), 8_000 if sample_rate is None else sample_rate)
    elif name in _ALAW:
        chunk = AudioChunk(alaw_decode(data), 8_000 if sample_rate is None else sample_rate)
    else:
        raise _invalid(f"Unsupported audio format {format[:40]!r}; supported: {_SUPPORTED}")
    check_rate(chunk.rate)
    if chunk.seconds > max_seconds:
        raise _too_long(max_seconds)
    return chunk


# --- WAV ------------------------------------------------------------------------------------------


def wav_bytes(chunk: AudioChunk) -> bytes:
    """A WAV file with a 44-byte header."""
    return wav_header(chunk.rate, len(chunk.pcm)) + chunk.pcm


def wav_header(rate: int, size: int) -> bytes:
    """The 44 bytes in front of `size` bytes of mono PCM16."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16, b"data", size
    )


def _is_wav(data: bytes) -> bool:
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"


def _decode_wav(data: bytes, max_seconds: float) -> AudioChunk:
    format_tag, channels, rate, bits, body = _parse_wav(data)
    check_rate(rate)
    if not 1 <= channels <= MAX_CHANNELS:
        raise _invalid(f"WAV with {channels} channels; expected 1 to {MAX_CHANNELS}")
    frame_bytes = channels * bits // 8
    body = body[: len(body) // frame_bytes * frame_bytes] if frame_bytes else b""
    if frame_bytes and len(body) // frame_bytes > max_seconds * rate:
        raise _too_long(max_seconds)
    samples = _wav_samples(format_tag, bits, body)
    if samples is None:
        return decode_file(data, max_seconds)
    return AudioChunk(downmix(samples, channels).tobytes(), rate)


def _parse_wav(data: bytes) -> tuple[int, int, int, int, bytes]:
    """Format tag, channels, Hz, bits per sample and the sample bytes.

    A length beyond the end of the data means "to the end". Programs that stream write 0 or 2**32-1 as a placeholder,
    which means the same.
    """
    offset, header = 12, b""
    while offset + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        offset += 8
        if name == b"data" and len(header) >= 16:
            format_tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", header)
            if format_tag == 0xFFFE and len(header) >= 26:
                (format_tag,) = struct.unpack_from("<H", header, 24)
            return format_tag, channels, rate, bits, data[offset : offset + size] if size else data[offset:]
        if name == b"fmt ":
            header = data[offset : offset + size]
        offset += size + (size & 1)
    raise _invalid("WAV file without samples: it has no complete `fmt ` and `data` chunk")


def _wav_samples(format_tag: int, bits: int, body: bytes) -> PcmSamples | None:
    """Interleaved samples as int16; None for encodings that only libsndfile knows."""
    match format_tag, bits:
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


def _invalid(message: str) -> InputError:
    return InputError(message, code="invalid_audio")


def _too_long(max_seconds: float) -> InputError:
    return InputError(f"More than {max_seconds:g} s of audio", code="invalid_audio", status=413)
