"""What a simulated user says and when, what the stub answers, and what a perfect server would know at which frame."""

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
from echosight.engines.stub import STUB_PIECE_MS, STUB_PIECES, STUB_TEXT, STUB_TOKEN_S
from echosight.engines.tts.espeak import EspeakTTS
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import GenerateOptions, TurnDetectionOptions
from echosight.turns.detector import TurnDetector, VadSignal
from vad_utils import WINDOW, default_model

FRAMES_A_SECOND = 50

SILENCE_MS = 400
"""Endpointing that is asked of every server: thirteen windows of 32 ms."""

THINK_MS = round(1000 * STUB_TOKEN_S * len(STUB_TEXT.split()))
"""What the stub takes until its first speech."""

ANSWER_BYTES = STUB_PIECES * STUB_PIECE_MS * 48
"""The stub's whole speech, PCM16 at 24 kHz."""

PIECE = b"\x10\x01\xf0\xfe" * (STUB_PIECE_MS * 12)
"""A piece of the stub's speech, never silent."""

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Clip:
    """One loop of a user: speech, then silence. Numbers are frames of 20 ms; `samples` is [frames, rate // 50]."""

    samples: Samples
    speech: int
    rate: int = INPUT_SAMPLE_RATE

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, rate: int) -> Clip:
        """The same at another rate: what is sent where a dialect wants that rate, and what can be heard of it."""
        pcm = resample(AudioChunk(self.samples.tobytes(), self.rate), rate).pcm
        return Clip(np.frombuffer(pcm, "<i2").reshape(-1, rate // FRAMES_A_SECOND), self.speech, rate)


def clip(recording: Path | None, silence_s: float = 2.5) -> Clip:
    """Three seconds of speech, or what the recording holds, and a nearly silent rest.

    The recording must not pause for as long as `SILENCE_MS`. Without one, espeak-ng speaks.
    """
    chunk = decode_audio(recording.read_bytes(), "wav", None) if recording else asyncio.run(_spoken())
    speech = np.frombuffer(resample(chunk, INPUT_SAMPLE_RATE).pcm, "<i2")
    quiet = np.random.default_rng(1).normal(0, 6, round(silence_s * INPUT_SAMPLE_RATE)).astype(np.int16)
    size = INPUT_SAMPLE_RATE // FRAMES_A_SECOND
    frames = -(-len(speech) // size)
    samples = np.concatenate([speech, np.zeros(frames * size - len(speech), np.int16), quiet])
    return Clip(samples[: len(samples) // size * size].reshape(-1, size), frames)


async def _spoken() -> AudioChunk:
    voice = EspeakTTS()
    await voice.start()
    try:
        text = "He was not an ill disposed young man, unless to be rather cold hearted is to be ill disposed."
        pcm = b"".join([piece.pcm async for piece in voice.synthesize(text, GenerateOptions())])
        return AudioChunk(pcm[: 6 * voice.rate], voice.rate)
    finally:
        await voice.close()


@dataclass(frozen=True, slots=True)
class Script:
    """What one user sends: `frames` are indices into the clip, one every 20 ms.

    `began[k]` is the frame that completes the first window of speech of turn k, `over[k]` the one that completes its
    last window of silence: nobody can know of either sooner. Turns from `hasty` on speak into the answer before them.
    """

    frames: list[int]
    began: list[int]
    over: list[int]
    hasty: int


def scripts(clip: Clip, users: int, loops: int, interruptions: int, seed: int = 0) -> list[Script]:
    """Users spread evenly over the clip: `loops` whole ones after the first, partial one, then `interruptions`.

    Raises ValueError if the recording is not one turn a loop.
    """
    chance = random.Random(seed)
    plans = []
    for user in range(users):
        start = round((user + chance.random()) / users * len(clip)) % len(clip)
        frames = [*range(start, len(clip)), *(loops * list(range(len(clip))))]
        calm = len(frames)
        for _ in range(interruptions):
            # From the first second of the answer, which is sent at once, to shortly before its end.
            frames += range(clip.speech + chance.randrange(40, 75))
        frames += range(len(clip))
        plans.append((frames, calm))
    found = _moments(clip, [frames for frames, _ in plans])
    made = []
    for (frames, calm), (began, over) in zip(plans, found, strict=True):
        hasty = sum(at < calm + clip.speech // 2 for at in began)
        said = sum(a > b for a, b in pairwise(frames))
        if not said <= len(over) <= said + 1:
            raise ValueError(f"the recording is not one turn: {len(over)} were found in {said} loops")
        made.append(Script(frames, began, over, hasty))
    return made


def _moments(clip: Clip, streams: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """(began, over) of each stream, by the server's own rules, as frames."""
    clip = clip.at(INPUT_SAMPLE_RATE)
    model = default_model()
    states = [model.stream() for _ in streams]
    detectors = [TurnDetector(TurnDetectionOptions(min_endpointing_delay_ms=SILENCE_MS)) for _ in streams]
    first: list[int | None] = [None] * len(streams)
    moments: list[tuple[list[int], list[int]]] = [([], []) for _ in streams]
    audio = [clip.samples[frames].reshape(-1) for frames in streams]
    for at in range(0, max(map(len, audio)) - WINDOW + 1, WINDOW):
        live = [k for k, samples in enumerate(audio) if at + WINDOW <= len(samples)]
        found = model.probabilities(np.stack([audio[k][at : at + WINDOW] for k in live]), [states[k] for k in live])
        frame = (at + WINDOW - 1) * FRAMES_A_SECOND // INPUT_SAMPLE_RATE
        for k, probability in zip(live, found.tolist(), strict=True):
            began, over = moments[k]
            silent = not detectors[k].speaking
            signals = detectors[k].push(probability)
            first[k] = (first[k] or frame) if silent and probability >= 0.5 else None
            began += [f for f in [first[k]] if f is not None and detectors[k].speaking and silent]
            over += [frame for signal in signals if signal.kind is VadSignal.END]
    return moments
