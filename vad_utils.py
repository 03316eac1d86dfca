"""Voice activity detection for recordings, with the public names of EchoSight's `vad_utils`."""

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
    """Extract the speech of a recording: (seconds of speech, the speech as mono PCM16, seconds of computation).

    `ori_audio` is mono PCM16 at `sr` Hz, or a whole WAV file, whose own rate replaces `sr`. The speech keeps the
    rate of the recording. Raises ValueError if the bytes are neither.
    """
    started = time.perf_counter()
    pcm, rate = _decode_audio(ori_audio, sr)
    if rate == SAMPLE_RATE:
        resampled = pcm
    else:
        import soxr

        resampled = soxr.resample(pcm, rate, SAMPLE_RATE)
    spans = get_speech_timestamps(resampled, vad_options)
    original = [Span(start=s["start"] * rate // SAMPLE_RATE, end=s["end"] * rate // SAMPLE_RATE) for s in spans]
    speech = collect_chunks(pcm, original)
    return len(speech) / rate, speech.tobytes(), time.perf_counter() - started


def _decode_audio(data: bytes, rate: int) -> tuple[npt.NDArray[np.int16], int]:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        import soundfile

        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"cannot read the WAV file: {error}") from error
        return samples.mean(axis=1).astype(np.int16), int(rate)
    if rate <= 0:
        raise ValueError(f"sample rate is {rate} Hz; expected more than 0")
    if len(data) % 2:
        raise ValueError(f"{len(data)} bytes are not whole 16-bit samples; expected an even number")
    return np.frombuffer(data, "<i2"), rate
