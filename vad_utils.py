"""Silero's voice activity detection for recordings, under the names that the EchoSight document gives it."""

from __future__ import annotations

import io
import time

import numpy as np
import numpy.typing as npt

from echosight.audio.silero import SAMPLE_RATE, WINDOW, Samples, SileroVADModel, VadState
from echosight.audio.speech_spans import Span, VadOptions, collect_chunks, default_model, get_speech_timestamps

__all__ = [
    "SAMPLE_RATE",
    "WINDOW",
    "Samples",
    "SileroVADModel",
    "Span",
    "VadOptions",
    "VadState",
    "collect_chunks",
    "default_model",
    "get_speech_timestamps",
    "run_vad",
]


def run_vad(ori_audio: bytes, sr: int, vad_options: VadOptions | None = None) -> tuple[float, bytes, float]:
    """The speech of a piece of audio: (seconds of it, the speech as mono PCM16, seconds this took).

    `ori_audio` is mono PCM16 at `sr` Hz, or a whole WAV file, whose own rate then counts. The speech keeps the
    rate it came with. Raises ValueError if the bytes are neither.
    """
    began = time.perf_counter()
    pcm, rate = _decode_audio(ori_audio, sr)
    if rate == SAMPLE_RATE:
        heard = pcm
    else:
        import soxr

        heard = soxr.resample(pcm, rate, SAMPLE_RATE)
    spans = get_speech_timestamps(heard, vad_options)
    own = [Span(start=s["start"] * rate // SAMPLE_RATE, end=s["end"] * rate // SAMPLE_RATE) for s in spans]
    speech = collect_chunks(pcm, own)
    return len(speech) / rate, speech.tobytes(), time.perf_counter() - began


def _decode_audio(data: bytes, rate: int) -> tuple[npt.NDArray[np.int16], int]:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        import soundfile

        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"not a WAV file that can be read: {error}") from error
        return samples.mean(axis=1).astype(np.int16), int(rate)
    if rate <= 0:
        raise ValueError(f"a rate of {rate} Hz")
    if len(data) % 2:
        raise ValueError("16-bit samples come in pairs of bytes, and one is left over")
    return np.frombuffer(data, "<i2"), rate
