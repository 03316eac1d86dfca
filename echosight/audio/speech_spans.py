"""Finds the speech in recordings: hysteresis over Silero's probabilities, as in silero-vad's `get_speech_timestamps`.

Live streams do not use it: `turns/detector.py` works on the probabilities window by window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from echosight.audio.silero import SAMPLE_RATE, WINDOW, Samples, SileroVADModel

__all__ = ["Span", "VadOptions", "collect_chunks", "default_model", "get_speech_timestamps"]


class Span(TypedDict):
    """A span of speech in samples at 16 kHz; `end` is exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class VadOptions:
    """Options of `get_speech_timestamps`. Speech begins at `threshold` and ends below `threshold - 0.15`.

    A span ends after `min_silence_duration_ms`; spans shorter than `min_speech_duration_ms` are dropped; each is
    extended by `speech_pad_ms` on both sides. `window_size_samples` can only be 512.
    """

    threshold: float = 0.7
    min_speech_duration_ms: int = 128
    max_speech_duration_s: float = float("inf")
    min_silence_duration_ms: int = 500
    window_size_samples: int = WINDOW
    speech_pad_ms: int = 30


@functools.cache
def default_model() -> SileroVADModel:
    """The model in `silero_vad.onnx`, loaded once for the process."""
    return SileroVADModel()


def get_speech_timestamps(audio: Samples, vad_options: VadOptions | None = None, **kwargs: Any) -> list[Span]:
    """The spans of speech in `audio` [samples], float32 or int16, mono at 16 kHz. Source: silero-vad's utils_vad.py.

    `kwargs` are fields of `VadOptions` and take precedence over `vad_options`. Raises ValueError if the audio is not
    one-dimensional or a window is not 512 samples, TypeError for an unknown option.
    """
    options = replace(vad_options or VadOptions(), **kwargs)
    if options.window_size_samples != WINDOW:
        raise ValueError(f"window_size_samples is {options.window_size_samples}; the model expects {WINDOW}")
    if np.ndim(audio) != 1:
        raise ValueError(f"expected one channel of samples [n], got an array of shape {np.shape(audio)}")
    spans = _find_spans(default_model().scan(audio).tolist(), len(audio), options)
    _pad(spans, len(audio), options.speech_pad_ms * SAMPLE_RATE // 1000)
    return spans


def collect_chunks(audio: Samples, chunks: Sequence[Span]) -> Samples:
    """The parts of `audio` [samples] in the spans `chunks`, concatenated."""
    return np.concatenate([audio[:0], *(audio[chunk["start"] : chunk["end"]] for chunk in chunks)])


def _find_spans(probabilities: Sequence[float], length: int, options: VadOptions) -> list[Span]:
    """Hysteresis over the windows of `length` samples.

    A span that exceeds the maximum is split at its last silence of at least 98 ms, or where it is if it has none.
    """
    ms = SAMPLE_RATE / 1000
    release = max(options.threshold - 0.15, 0.01)
    min_silence, min_gap = options.min_silence_duration_ms * ms, 98 * ms
    max_speech = options.max_speech_duration_s * SAMPLE_RATE - WINDOW - 2 * options.speech_pad_ms * ms
    spans: list[Span] = []
    start = silence = None  # the start of the open span, and of the silence at its end
    gap: tuple[int, int] | None = None  # the last silence in it that is long enough for a split

    for position, probability in zip(range(0, length, WINDOW), probabilities, strict=True):
        if probability >= options.threshold:
            if silence is not None and position - silence > min_gap:
                gap = (silence, position)
            start, silence = position if start is None else start, None
        if start is None:
            continue
        if position - start > max_speech:
            if silence is not None and position - silence > min_gap:
                gap = (silence, position)
            end, next_start = gap or (position, position)
            spans.append(Span(start=start, end=end))
            start, gap = (None, None) if silence is not None else (next_start, None)
        elif probability < release:
            silence = position if silence is None else silence
            if position - silence >= min_silence:
                spans.append(Span(start=start, end=silence))
                start = silence = gap = None
    if start is not None:
        spans.append(Span(start=start, end=length))
    min_speech = min(options.min_speech_duration_ms * ms, max_speech)
    return [span for span in spans if span["end"] - span["start"] > min_speech]


def _pad(spans: list[Span], length: int, pad: int) -> None:
    """Extend each span by `pad` samples on both sides; two neighbours share the gap where it is shorter than that."""
    edges = [0, *(edge for span in spans for edge in (span["start"], span["end"])), length]
    gaps = [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
    for index, span in enumerate(spans):
        before, after = gaps[index], gaps[index + 1]
        span["start"] -= min(pad, before if index == 0 else before // 2)
        span["end"] += min(pad, after if index == len(spans) - 1 else after // 2)
