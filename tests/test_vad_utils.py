"""The Silero network in numpy compared with the upstream graph in ONNX Runtime, and the spans of speech it finds."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from echosight.audio.silero import CONTEXT, MODEL_PATH
from echosight.media import AudioChunk
from vad_utils import (
    SAMPLE_RATE,
    WINDOW,
    SileroVADModel,
    VadOptions,
    collect_chunks,
    default_model,
    get_speech_timestamps,
    run_vad,
)

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def speech(flite: Callable[[str], AudioChunk]) -> Floats:
    """Half a second of silence, a synthetic sentence, a second of silence; at 16 kHz."""
    chunk = flite("go forward ten meters and turn left")
    assert chunk.rate == SAMPLE_RATE
    samples = np.frombuffer(chunk.pcm, "<i2").astype(np.float32) / 32_768
    return np.concatenate([np.zeros(8000, np.float32), samples, np.zeros(16_000, np.float32)])


@pytest.fixture(scope="session")
def upstream() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(MODEL_PATH), options, providers=["CPUExecutionProvider"])


def run_upstream(session: onnxruntime.InferenceSession, audio: Floats, context: int = CONTEXT) -> Floats:
    state = np.zeros((2, 1, 128), np.float32)
    before = np.zeros(CONTEXT, np.float32)
    found = []
    for window in windows_of(audio):
        padded = np.concatenate([before[CONTEXT - context :], window])[None]
        probability, state = session.run(None, {"input": padded, "state": state, "sr": np.array(SAMPLE_RATE)})
        found.append(probability[0, 0])
        before = window[-CONTEXT:]
    return np.array(found, np.float32)


def windows_of(audio: Floats) -> Floats:
    return audio[: len(audio) // WINDOW * WINDOW].reshape(-1, WINDOW)


def test_the_model_file_has_the_checksum_in_the_notice() -> None:
    digest = hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()
    assert digest in MODEL_PATH.with_name("NOTICE").read_text()


def test_probabilities_equal_the_upstream_graph(speech: Floats, upstream: onnxruntime.InferenceSession) -> None:
    whole = speech[: len(speech) // WINDOW * WINDOW]
    expected = run_upstream(upstream, whole)
    assert expected.max() > 0.9 and expected.min() < 0.1
    np.testing.assert_allclose(default_model().scan(whole), expected, atol=1e-5)


def test_probabilities_equal_the_upstream_graph_on_real_speech(
    speech_dir: Path, upstream: onnxruntime.InferenceSession
) -> None:
    recordings = [entry["file"] for entry in json.loads((speech_dir / "manifest.json").read_text())]
    mono = [r for r in recordings if soundfile.info(speech_dir / r).channels == 1]
    assert mono
    for recording in mono:
        samples, _ = soundfile.read(speech_dir / recording, dtype="float32")
        whole = samples[: len(samples) // WINDOW * WINDOW]
        np.testing.assert_allclose(default_model().scan(whole), run_upstream(upstream, whole), atol=1e-5)


def test_probabilities_equal_the_upstream_graph_on_noise_of_any_level(upstream: onnxruntime.InferenceSession) -> None:
    random = np.random.default_rng(1)
    for level in (0.0, 1e-4, 0.05, 1.0):
        noise: Floats = (level * random.uniform(-1, 1, 20 * WINDOW)).astype(np.float32)
        np.testing.assert_allclose(default_model().scan(noise), run_upstream(upstream, noise), atol=1e-5)


def test_the_context_of_the_previous_window_is_used(speech: Floats, upstream: onnxruntime.InferenceSession) -> None:
    """The upstream graph accepts 512 samples without context and then gives wrong probabilities."""
    without = run_upstream(upstream, speech, context=0)
    ours = default_model().scan(speech[: len(without) * WINDOW])
    assert ours.max() > 0.9
    assert np.abs(ours - without).max() > 0.5


def test_the_last_samples_of_a_window_are_the_context_of_the_next(speech: Floats) -> None:
    model = default_model()
    one, other = model.stream(), model.stream()
    window = speech[16_000 : 16_000 + WINDOW]
    changed = window.copy()
    changed[-CONTEXT:] = 0
    model.probabilities(window[None], [one])
    model.probabilities(changed[None], [other])
    other.values[CONTEXT:] = one.values[CONTEXT:]
    following = speech[None, 16_000 + WINDOW : 16_000 + 2 * WINDOW]
    assert abs(model.probabilities(following, [one])[0] - model.probabilities(following, [other])[0]) > 1e-4


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 8, 31, 32, 33, 70])
def test_a_batch_gives_the_same_as_single_windows(speech: Floats, batch: int) -> None:
    model = default_model()
    windows = windows_of(speech)
    together = [model.stream() for _ in range(batch)]
    alone = [model.stream() for _ in range(batch)]
    for step in range(4):
        batch_windows = windows[(np.arange(batch) * 3 + step + 20) % len(windows)]
        found = model.probabilities(batch_windows, together)
        assert found.shape == (batch,) and found.dtype == np.float32
        singles = [model.probabilities(batch_windows[k : k + 1], alone[k : k + 1])[0] for k in range(batch)]
        np.testing.assert_allclose(found, np.array(singles, np.float32), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=12))
def test_interleaved_streams_give_the_same_as_separate_ones(passes: list[set[int]]) -> None:
    model = default_model()
    random = np.random.default_rng(7)
    audio: Floats = (0.3 * random.standard_normal((6, len(passes), WINDOW))).astype(np.float32)
    states = [model.stream() for _ in range(6)]
    probabilities: list[list[float]] = [[] for _ in range(6)]
    for members in passes:
        batch = sorted(members)
        windows = np.stack([audio[k, len(probabilities[k])] for k in batch])
        for k, probability in zip(batch, model.probabilities(windows, [states[k] for k in batch]), strict=True):
            probabilities[k].append(float(probability))
    for k in range(6):
        alone: Floats = model.scan(audio[k, : len(probabilities[k])].reshape(-1))
        np.testing.assert_allclose(np.array(probabilities[k], np.float32), alone, atol=1e-5)


def test_int16_and_float_input_give_the_same(speech: Floats) -> None:
    pcm = (speech * 32_767).astype(np.int16)
    floats: Floats = pcm.astype(np.float32) / np.float32(32_768)
    np.testing.assert_array_equal(default_model().scan(pcm), default_model().scan(floats))


@pytest.mark.parametrize("shape", [(1, 511), (2, 512), (512,), (1, 576)])
def test_windows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = default_model()
    with pytest.raises(ValueError, match="1 windows of 512"):
        model.probabilities(np.zeros(shape, np.float32), [model.stream()])


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x3a\x02\x0a\x00", b"\xff" * 40])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="not the Silero VAD model"):
        SileroVADModel(tmp_path / "other.onnx")
    with pytest.raises(FileNotFoundError):
        SileroVADModel(tmp_path / "missing.onnx")


def test_timestamps_enclose_the_speech(speech: Floats) -> None:
    (span,) = get_speech_timestamps(speech)
    assert abs(span["start"] - 8000) < 3200
    assert abs(span["end"] - (len(speech) - 16_000)) < 4800
    twice = np.concatenate([speech, speech])
    first, second = get_speech_timestamps(twice, VadOptions(threshold=0.5), min_silence_duration_ms=300)
    assert abs(second["start"] - first["start"] - len(speech)) < 1024
    (joined,) = get_speech_timestamps(twice, min_silence_duration_ms=5000)
    assert joined["start"] == first["start"] or abs(joined["start"] - first["start"]) <= WINDOW
    assert joined["end"] > second["start"]


def test_a_recording_without_speech_has_no_timestamps() -> None:
    assert get_speech_timestamps(np.zeros(0, np.float32)) == []
    assert get_speech_timestamps(np.zeros(50_000, np.float32)) == []


def test_long_speech_is_split_without_losing_any(speech: Floats) -> None:
    loud = np.concatenate([speech[8000:-16_000]] * 4)
    (whole,) = get_speech_timestamps(loud, min_silence_duration_ms=1000)
    spans = get_speech_timestamps(loud, min_silence_duration_ms=1000, max_speech_duration_s=1.0)
    assert len(spans) >= 4
    assert all(span["end"] - span["start"] <= SAMPLE_RATE for span in spans)
    assert spans[0]["start"] == whole["start"] and spans[-1]["end"] == whole["end"]
    assert all(a["end"] <= b["start"] for a, b in pairwise(spans))


def test_padded_spans_do_not_overlap_and_stay_inside_the_recording(speech: Floats) -> None:
    twice = np.concatenate([speech[8000:-16_000], np.zeros(8000, np.float32), speech[8000:]])
    for pad in (0, 30, 200, 5000):
        spans = get_speech_timestamps(twice, threshold=0.5, min_silence_duration_ms=100, speech_pad_ms=pad)
        edges = [edge for span in spans for edge in (span["start"], span["end"])]
        assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(twice)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="512"):
        get_speech_timestamps(np.zeros(1000, np.float32), window_size_samples=1536)
    with pytest.raises(ValueError, match="one channel"):
        get_speech_timestamps(np.zeros((2, 1000), np.float32))
    with pytest.raises(TypeError):
        get_speech_timestamps(np.zeros(1000, np.float32), treshold=0.5)


def test_chunks_are_concatenated_in_order() -> None:
    audio = np.arange(10, dtype=np.float32)
    collected = collect_chunks(audio, [{"start": 1, "end": 3}, {"start": 7, "end": 8}])
    assert collected.tolist() == [1, 2, 7] and collected.dtype == np.float32
    assert collect_chunks(audio, []).tolist() == []


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 24_000, 8_000])
def test_run_vad_keeps_the_rate_of_the_recording(speech: Floats, rate: int, channels: int) -> None:
    soxr = pytest.importorskip("soxr")
    own = speech if rate == SAMPLE_RATE else soxr.resample(speech, SAMPLE_RATE, rate)
    wav = io.BytesIO()
    soundfile.write(wav, np.stack([own] * channels, axis=1), rate, format="WAV", subtype="PCM_16")
    raw = (own * 32_767).astype(np.int16).tobytes()
    expected = sum(s["end"] - s["start"] for s in get_speech_timestamps(speech)) / SAMPLE_RATE
    for data, sample_rate in ((raw, rate), (wav.getvalue(), 1)):
        seconds, pcm, elapsed = run_vad(data, sample_rate)
        assert len(pcm) == round(seconds * rate) * 2 and elapsed > 0
        assert abs(seconds - expected) < 0.1


@pytest.mark.parametrize(("data", "rate"), [(b"\0\0\0", 16_000), (b"\0\0", 0), (b"RIFF\0\0\0\0WAVEjunk", 16_000)])
def test_run_vad_refuses_other_data(data: bytes, rate: int) -> None:
    with pytest.raises(ValueError):
        run_vad(data, rate)
    assert run_vad(b"", 16_000)[:2] == (0.0, b"")


def test_threads_may_share_the_model(speech: Floats) -> None:
    model = SileroVADModel()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.scan, [speech] * 8))
    for probabilities in found:
        np.testing.assert_array_equal(probabilities, found[0])
