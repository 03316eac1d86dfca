"""Where there is speech in a recording: Silero's probabilities, cut into spans.

Live streams do without it: `SileroVADModel` gives their probabilities window by window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from echosight.audio.silero import SAMPLE_RATE, WINDOW, Samples, SileroVADModel


class Span(TypedDict):
    """A stretch of speech, in samples at 16 kHz; `end` is exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class VadOptions:
    """How `get_speech_timestamps` cuts. Speech begins at `threshold` and ends below `threshold - 0.15`."""

    threshold: float = 0.7
    min_speech_duration_ms: int = 128
    max_speech_duration_s: float = float("inf")
    min_silence_duration_ms: int = 500
    window_size_samples: int = WINDOW
    speech_pad_ms: int = 30


@functools.cache
def default_model() -> SileroVADModel:
    """The model beside this file, loaded once."""
    return SileroVADModel()


def get_speech_timestamps(audio: Samples, vad_options: VadOptions | None = None, **kwargs: Any) -> list[Span]:
    """Where there is speech in `audio` (mono at 16 kHz, float32 or int16), as silero-vad's function of that name.

    `kwargs` are fields of `VadOptions` and come before `vad_options`. Raises ValueError if the audio is not
    one-dimensional or a window is not 512 samples, TypeError for an unknown option.
    """
    options = replace(vad_options or VadOptions(), **kwargs)
    if options.window_size_samples != WINDOW:
        raise ValueError(f"window_size_samples must be {WINDOW}, not {options.window_size_samples}")
    if np.ndim(audio) != 1:
        raise ValueError(f"expected one channel of samples, got an array of {np.shape(audio)}")
    spans = _find_spans(default_model().scan(audio).tolist(), len(audio), options)
    _pad(spans, len(audio), options.speech_pad_ms * SAMPLE_RATE // 1000)
    return spans


def collect_chunks(audio: Samples, chunks: Sequence[Span]) -> Samples:
    """The stretches of `audio` that `chunks` names, one after the other."""
    return np.concatenate([audio[:0], *(audio[chunk["start"] : chunk["end"]] for chunk in chunks)])


def _find_spans(probabilities: Sequence[float], length: int, options: VadOptions) -> list[Span]:
    """Hysteresis over the windows. Too long a span is cut at its last silence of 98 ms, else where it stands."""
    ms = SAMPLE_RATE / 1000
    release = max(options.threshold - 0.15, 0.01)
    silence, breath = options.min_silence_duration_ms * ms, 98 * ms
    longest = options.max_speech_duration_s * SAMPLE_RATE - WINDOW - 2 * options.speech_pad_ms * ms
    spans: list[Span] = []
    start = quiet = None  # where the open span began, and the silence it is in
    gap: tuple[int, int] | None = None  # its last silence long enough to cut in

    for at, probability in zip(range(0, length, WINDOW), probabilities, strict=True):
        if probability >= options.threshold:
            if quiet is not None and at - quiet > breath:
                gap = (quiet, at)
            start, quiet = at if start is None else start, None
        if start is None:
            continue
        if at - start > longest:
            if quiet is not None and at - quiet > breath:
                gap = (quiet, at)
            end, resumed = gap or (at, at)
            spans.append(Span(start=start, end=end))
            start, gap = (None, None) if quiet is not None else (resumed, None)
        elif probability < release:
            quiet = at if quiet is None else quiet
            if at - quiet >= silence:
                spans.append(Span(start=start, end=quiet))
                start = quiet = gap = None
    if start is not None:
        spans.append(Span(start=start, end=length))
    shortest = min(options.min_speech_duration_ms * ms, longest)
    return [span for span in spans if span["end"] - span["start"] > shortest]


def _pad(spans: list[Span], length: int, pad: int) -> None:
    """Widen each span by `pad` samples; two with less than twice that between them share it."""
    edges = [0, *(edge for span in spans for edge in (span["start"], span["end"])), length]
    gaps = [after - before for before, after in zip(edges[::2], edges[1::2], strict=True)]
    for at, span in enumerate(spans):
        span["start"] -= min(pad, gaps[at] if at == 0 else gaps[at] // 2)
        span["end"] += min(pad, gaps[at + 1] if at == len(spans) - 1 else gaps[at + 1] // 2)
