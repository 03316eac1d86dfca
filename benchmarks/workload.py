"""The workload of the benchmarks: the users' speech, the stub's response, and the frames where turns start and end."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.engines.stub import STUB_CHUNK_MS, STUB_CHUNKS, STUB_TEXT, STUB_TOKEN_S
from echosight.engines.tts.espeak import EspeakTTS
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import GenerateOptions, TurnDetectionOptions
from echosight.turns.detector import TurnDetector, VadSignal
from vad_utils import WINDOW, default_model

FRAMES_PER_SECOND = 50

SILENCE_MS = 400
"""Endpointing delay that all servers are configured with: thirteen windows of 32 ms."""

STUB_LATENCY_MS = round(1000 * STUB_TOKEN_S * len(STUB_TEXT.split()))
"""Time from the end of the turn to the stub's first speech."""

RESPONSE_BYTES = STUB_CHUNKS * STUB_CHUNK_MS * 48
"""Size of the stub's whole speech, PCM16 at 24 kHz."""

STUB_CHUNK = b"\x10\x01\xf0\xfe" * (STUB_CHUNK_MS * 12)
"""A chunk of the stub's speech; it contains no silence."""

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Clip:
    """One loop of a user: `speech` frames of speech, then silence.

    A frame is 20 ms; `samples` is int16 [frames, rate // 50].
    """

    samples: Samples
    speech: int
    rate: int = INPUT_SAMPLE_RATE

    def __len__(self) -> int:
        return len(self.samples)

    def at_rate(self, rate: int) -> Clip:
        """The clip resampled, for dialects with another sample rate."""
        pcm = resample(AudioChunk(self.samples.tobytes(), self.rate), rate).pcm
        return Clip(np.frombuffer(pcm, "<i2").reshape(-1, rate // FRAMES_PER_SECOND), self.speech, rate)


def clip(recording: Path | None, silence_s: float = 2.5) -> Clip:
    """The recording, or three seconds of speech that espeak-ng synthesizes, followed by faint noise.

    The recording must not contain a pause of `SILENCE_MS`.
    """
    chunk = decode_audio(recording.read_bytes(), "wav", None) if recording else asyncio.run(_synthesize())
    speech = np.frombuffer(resample(chunk, INPUT_SAMPLE_RATE).pcm, "<i2")
    noise = np.random.default_rng(1).normal(0, 6, round(silence_s * INPUT_SAMPLE_RATE)).astype(np.int16)
    size = INPUT_SAMPLE_RATE // FRAMES_PER_SECOND
    frames = -(-len(speech) // size)
    samples = np.concatenate([speech, np.zeros(frames * size - len(speech), np.int16), noise])
    return Clip(samples[: len(samples) // size * size].reshape(-1, size), frames)


async def _synthesize() -> AudioChunk:
    voice = EspeakTTS()
    await voice.start()
    try:
        text = "He was not an ill disposed young man, unless to be rather cold hearted is to be ill disposed."
        pcm = b"".join([chunk.pcm async for chunk in voice.synthesize(text, GenerateOptions())])
        return AudioChunk(pcm[: 6 * voice.rate], voice.rate)
    finally:
        await voice.close()


@dataclass(frozen=True, slots=True)
class Script:
    """The audio of one user: `frames` are indices into the clip, one every 20 ms.

    `starts[k]` is the frame that completes the first window of speech of turn k, `ends[k]` the frame that completes the
    last window of the silence that ends it: no server can detect either earlier. From turn `first_interruption` on, the
    user speaks over the previous response.
    """

    frames: list[int]
    starts: list[int]
    ends: list[int]
    first_interruption: int


def scripts(clip: Clip, users: int, loops: int, interruptions: int, seed: int = 0) -> list[Script]:
    """One script per user, each with another start in the clip: `loops` whole loops, then `interruptions`.

    Raises ValueError if the VAD does not find exactly one turn in each loop.
    """
    rng = random.Random(seed)
    plans = []
    for user in range(users):
        start = round((user + rng.random()) / users * len(clip)) % len(clip)
        frames = [*range(start, len(clip)), *(loops * list(range(len(clip))))]
        steady_frames = len(frames)
        for _ in range(interruptions):
            # From the first second of the response, which is sent at once, to shortly before its end.
            frames += range(clip.speech + rng.randrange(40, 75))
        frames += range(len(clip))
        plans.append((frames, steady_frames))
    events = _reference_events(clip, [frames for frames, _ in plans])
    result = []
    for (frames, steady_frames), (starts, ends) in zip(plans, events, strict=True):
        first_interruption = sum(frame < steady_frames + clip.speech // 2 for frame in starts)
        spoken = sum(a > b for a, b in pairwise(frames))
        if not spoken <= len(ends) <= spoken + 1:
            raise ValueError(f"the recording is not one turn: the VAD found {len(ends)} turns in {spoken} loops")
        result.append(Script(frames, starts, ends, first_interruption))
    return result


def _reference_events(clip: Clip, streams: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """(starts, ends) of the turns in each stream, in frames, by the rules of EchoSight's own detector."""
    clip = clip.at_rate(INPUT_SAMPLE_RATE)
    model = default_model()
    states = [model.stream() for _ in streams]
    detectors = [TurnDetector(TurnDetectionOptions(min_endpointing_delay_ms=SILENCE_MS)) for _ in streams]
    onsets: list[int | None] = [None] * len(streams)
    events: list[tuple[list[int], list[int]]] = [([], []) for _ in streams]
    audio = [clip.samples[frames].reshape(-1) for frames in streams]
    for start in range(0, max(map(len, audio)) - WINDOW + 1, WINDOW):
        live = [k for k, samples in enumerate(audio) if start + WINDOW <= len(samples)]
        windows = np.stack([audio[k][start : start + WINDOW] for k in live])
        probabilities = model.probabilities(windows, [states[k] for k in live])
        frame = (start + WINDOW - 1) * FRAMES_PER_SECOND // INPUT_SAMPLE_RATE
        for k, probability in zip(live, probabilities.tolist(), strict=True):
            starts, ends = events[k]
            silent = not detectors[k].speaking
            signals = detectors[k].push(probability)
            onsets[k] = (onsets[k] or frame) if silent and probability >= 0.5 else None
            starts += [onset for onset in [onsets[k]] if onset is not None and detectors[k].speaking and silent]
            ends += [frame for signal in signals if signal.kind is VadSignal.END]
    return events
