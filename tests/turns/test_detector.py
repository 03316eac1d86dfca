"""Turns out of speech probabilities, and many streams through one model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from echosight.media import AudioChunk
from echosight.options import TurnDetectionOptions
from echosight.turns.detector import TurnDetector, TurnSignal, VadSignal
from echosight.turns.vad import WINDOW_BYTES, BatchedVad
from vad_utils import WINDOW, Samples, SileroVADModel, VadState, default_model

SPEECH, SILENCE = 0.9, 0.1


def detect(probabilities: Iterable[float], options: TurnDetectionOptions | None = None) -> list[TurnSignal]:
    detector = TurnDetector(options or TurnDetectionOptions())
    return [signal for probability in probabilities for signal in detector.push(probability)]


def at(windows: int) -> int:
    return windows * WINDOW


def test_a_turn_with_a_pause() -> None:
    signals = detect([SILENCE] * 20 + [SPEECH] * 10 + [SILENCE] * 6 + [SPEECH] * 3 + [SILENCE] * 12)
    assert signals == [
        TurnSignal(VadSignal.START, at(20) - 4800),
        TurnSignal(VadSignal.PAUSE, at(30)),
        TurnSignal(VadSignal.RESUME, at(36)),
        TurnSignal(VadSignal.PAUSE, at(39)),
        TurnSignal(VadSignal.END, at(39)),
    ]


def test_a_turn_ends_in_the_window_that_completes_the_silence() -> None:
    detector = TurnDetector(TurnDetectionOptions(min_endpointing_delay_ms=384))
    for _ in range(5):
        detector.push(SPEECH)
    assert detector.speaking
    for _ in range(11):
        assert TurnSignal(VadSignal.END, at(5)) not in detector.push(SILENCE)
    assert detector.push(SILENCE) == (TurnSignal(VadSignal.END, at(5)),)
    assert not detector.speaking and detector.position == at(17)


@pytest.mark.parametrize(("min_speech_ms", "windows"), [(0, 1), (32, 1), (33, 2), (64, 2), (96, 3), (250, 8)])
def test_a_sound_shorter_than_min_speech_is_no_turn(min_speech_ms: int, windows: int) -> None:
    options = TurnDetectionOptions(min_speech_ms=min_speech_ms)
    assert detect(([SPEECH] * (windows - 1) + [SILENCE]) * 5, options) == []
    assert detect([SPEECH] * windows, options) == [TurnSignal(VadSignal.START, 0)]


def test_hysteresis() -> None:
    between = 0.4
    assert detect([between] * 50) == []
    assert detect([SPEECH] * 2 + [between] * 100) == [TurnSignal(VadSignal.START, 0)]
    faded = detect([SPEECH] * 2 + [SILENCE] + [between] * 11)
    assert faded == [
        TurnSignal(VadSignal.START, 0),
        TurnSignal(VadSignal.PAUSE, at(2)),
        TurnSignal(VadSignal.END, at(2)),
    ]


def test_the_padding_never_reaches_into_the_last_turn() -> None:
    options = TurnDetectionOptions(min_endpointing_delay_ms=64, speculation_delay_ms=1000)
    signals = detect([SPEECH] * 3 + [SILENCE] * 3 + [SPEECH] * 3 + [SILENCE] * 2, options)
    assert signals == [
        TurnSignal(VadSignal.START, 0),
        TurnSignal(VadSignal.END, at(3)),
        TurnSignal(VadSignal.START, at(3)),
        TurnSignal(VadSignal.END, at(9)),
    ]


def test_endless_speech_is_cut_without_loss() -> None:
    signals = detect([SPEECH] * 100, TurnDetectionOptions(max_turn_ms=960))
    assert signals == [
        TurnSignal(VadSignal.START, 0),
        TurnSignal(VadSignal.END, at(30), forced=True),
        TurnSignal(VadSignal.START, at(30)),
        TurnSignal(VadSignal.END, at(60), forced=True),
        TurnSignal(VadSignal.START, at(60)),
        TurnSignal(VadSignal.END, at(90), forced=True),
        TurnSignal(VadSignal.START, at(90)),
    ]


def test_options_may_change_within_a_turn() -> None:
    detector = TurnDetector(TurnDetectionOptions(min_endpointing_delay_ms=3200))
    for probability in [SPEECH] * 3 + [SILENCE] * 10:
        detector.push(probability)
    assert detector.speaking
    detector.options = replace(detector.options, min_endpointing_delay_ms=320)
    assert detector.push(SILENCE) == (TurnSignal(VadSignal.END, at(3)),)


def test_reset_drops_the_turn_and_its_pre_roll() -> None:
    detector = TurnDetector(TurnDetectionOptions())
    for _ in range(5):
        detector.push(SPEECH)
    detector.reset()
    assert not detector.speaking
    assert [*detector.push(SPEECH), *detector.push(SPEECH)] == [TurnSignal(VadSignal.START, at(5))]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_every_threshold_lets_a_turn_begin_and_end(threshold: float) -> None:
    signals = detect([0.004] * 5 + [0.997] * 5 + [0.004] * 20, TurnDetectionOptions(threshold=threshold))
    assert signals == [
        TurnSignal(VadSignal.START, at(5) - 2560),
        TurnSignal(VadSignal.PAUSE, at(10)),
        TurnSignal(VadSignal.END, at(10)),
    ]


options_of_all_kinds = st.builds(
    TurnDetectionOptions,
    threshold=st.floats(0, 1),
    prefix_padding_ms=st.integers(0, 500),
    min_speech_ms=st.integers(0, 200),
    min_endpointing_delay_ms=st.integers(0, 600),
    speculation_delay_ms=st.integers(0, 600),
    max_turn_ms=st.integers(1, 2000),
)
steps = st.lists(st.one_of(st.floats(0, 1), st.just("reset"), options_of_all_kinds), max_size=120)


@given(options_of_all_kinds, steps)
def test_signals_alternate_and_positions_never_go_back(
    options: TurnDetectionOptions, steps: list[float | str | TurnDetectionOptions]
) -> None:
    detector = TurnDetector(options)
    speaking, paused, last = False, False, 0
    for step in steps:
        if isinstance(step, TurnDetectionOptions):
            detector.options = step
        elif isinstance(step, str):
            detector.reset()
            speaking, paused, last = False, False, detector.position
        else:
            for signal in detector.push(step):
                assert last <= signal.sample <= detector.position
                last = signal.sample
                match signal:
                    case TurnSignal(VadSignal.START):
                        assert not speaking
                        speaking, paused = True, False
                    case TurnSignal(VadSignal.PAUSE):
                        assert speaking and not paused
                        paused = True
                    case TurnSignal(VadSignal.RESUME):
                        assert speaking and paused
                        paused = False
                    case TurnSignal(VadSignal.END):
                        assert speaking
                        speaking = False
        assert detector.speaking == speaking


def windows_of(pcm: bytes) -> list[bytes]:
    return [pcm[k : k + WINDOW_BYTES] for k in range(0, len(pcm) - WINDOW_BYTES + 1, WINDOW_BYTES)]


async def listen(activity: BatchedVad, pcm: bytes, options: TurnDetectionOptions) -> list[TurnSignal]:
    stream, detector = activity.stream(), TurnDetector(options)
    return [s for window in windows_of(pcm) for s in detector.push(await stream.probability(window))]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
async def test_two_sentences_are_two_turns(flite: Callable[..., AudioChunk], threshold: float) -> None:
    first, second = flite("go forward ten meters").pcm, flite("turn left and stop", "awb").pcm
    quiet = bytes(32_000)
    pcm = quiet + first + quiet + second + quiet
    signals = await listen(BatchedVad(), pcm, TurnDetectionOptions(threshold=threshold))
    began = [s.sample for s in signals if s.kind is VadSignal.START]
    ended = [s.sample for s in signals if s.kind is VadSignal.END]
    starts = [16_000, 16_000 + len(first) // 2 + 16_000]
    ends = [starts[0] + len(first) // 2, starts[1] + len(second) // 2]
    assert len(began) == len(ended) == 2
    for found, true in zip(began + ended, starts + ends, strict=True):
        assert abs(found - true) < 6400


@pytest.mark.parametrize("threshold", [0.5, 1.0])
async def test_real_speech_becomes_turns(speech_dir: Path, threshold: float) -> None:
    entries = json.loads((speech_dir / "manifest.json").read_text())
    recordings = [e["file"] for e in entries if e["kind"] == "real" and e["transcript"]]
    activity, cut = BatchedVad(), 0
    for recording in recordings:
        pcm = soundfile.read(speech_dir / recording, dtype="int16")[0].tobytes()
        signals = await listen(activity, bytes(9600) + pcm + bytes(32_000), TurnDetectionOptions(threshold=threshold))
        turns = sum(s.kind is VadSignal.END for s in signals)
        assert turns >= 1, recording
        cut += turns > 1
    assert cut <= len(recordings) // 5


class Recorder(SileroVADModel):
    """Notes the size of each batch, and breaks when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.broken: Exception | None = None

    def probabilities(self, windows: Samples, states: Sequence[VadState]) -> npt.NDArray[np.float32]:
        if self.broken is not None:
            raise self.broken
        self.batches.append(len(states))
        return super().probabilities(windows, states)


def noise(streams: int, windows: int) -> list[list[bytes]]:
    random = np.random.default_rng(3)
    pcm = (8000 * random.standard_normal((streams, windows, WINDOW))).clip(-32_768, 32_767).astype("<i2")
    return [[window.tobytes() for window in stream] for stream in pcm]


def alone(windows: list[bytes]) -> list[float]:
    found: list[float] = default_model().scan(np.frombuffer(b"".join(windows), np.int16)).tolist()
    return found


async def test_windows_ready_together_are_one_batch() -> None:
    model = Recorder()
    activity = BatchedVad(model)
    audio = noise(5, 4)

    async def user(windows: list[bytes]) -> list[float]:
        stream = activity.stream()
        return [await stream.probability(window) for window in windows]

    found = await asyncio.gather(*map(user, audio))
    assert model.batches == [5, 5, 5, 5]
    for probabilities, windows in zip(found, audio, strict=True):
        assert probabilities == pytest.approx(alone(windows), abs=2e-6)


async def test_windows_of_one_stream_keep_their_order() -> None:
    model = Recorder()
    activity = BatchedVad(model)
    (one, other) = noise(2, 3)
    a, b = activity.stream(), activity.stream()
    answers = [a.probability(one[0]), a.probability(one[1]), b.probability(other[0]), a.probability(one[2])]
    found = await asyncio.gather(*answers)
    assert model.batches == [2, 1, 1]
    assert [found[0], found[1], found[3]] == pytest.approx(alone(one), abs=2e-6)
    assert found[2] == pytest.approx(alone(other[:1])[0], abs=2e-6)


async def test_a_cancelled_caller_leaves_the_stream_whole() -> None:
    activity = BatchedVad()
    (windows,) = noise(1, 3)
    stream = activity.stream()
    first = await stream.probability(windows[0])
    stream.probability(windows[1]).cancel()
    third = await stream.probability(windows[2])
    assert [first, third] == pytest.approx([alone(windows)[k] for k in (0, 2)], abs=2e-6)


async def test_an_error_of_the_model_reaches_every_waiter_and_the_next_batch_works() -> None:
    model = Recorder()
    activity = BatchedVad(model)
    audio = noise(3, 1)
    model.broken = RuntimeError("broken")
    found = await asyncio.gather(*(activity.stream().probability(w[0]) for w in audio), return_exceptions=True)
    assert found == [model.broken] * 3
    model.broken = None
    assert await activity.stream().probability(audio[0][0]) == pytest.approx(alone(audio[0])[0], abs=2e-6)


@pytest.mark.parametrize("size", [0, 1022, 1023, 1026])
async def test_a_window_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="1024 bytes"):
        BatchedVad().stream().probability(bytes(size))
