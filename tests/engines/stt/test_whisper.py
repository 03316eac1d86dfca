"""Whisper as an STT: the real program on a tiny random model, and its bookkeeping on a model that counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echosight.engines.stt import whisper_decoder
from echosight.engines.stt.whisper import WhisperStream, WhisperSTT, make_stt
from echosight.engines.stt.whisper_decoder import Decoder, HallucinationFilter
from echosight.engines.stt.whisper_model import check_folder, load_model
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript
from echosight.settings import Settings
from tests.conftest import Flite

SECOND = 2 * INPUT_SAMPLE_RATE
NO_FILTER = HallucinationFilter(no_speech=2, log_probability=-99, compression_ratio=999)
"""A random model's segments all look like hallucinations."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("faster_whisper", "ctranslate2", "torch", "transformers"):
        pytest.importorskip(module)
    from tests.engines.stt.tiny_whisper import write_whisper

    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder(load_model(str(folder)), NO_FILTER)


@pytest.fixture
async def tiny(decoder: Decoder) -> AsyncIterator[WhisperSTT]:
    stt = WhisperSTT("tiny", lambda: decoder)
    await stt.start()
    yield stt
    await stt.close()


@dataclass
class Counted:
    start: float
    end: float
    text: str
    words: Any = None
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    compression_ratio: float = 1.0


class Counter:
    """A model that recognises in each second the number that its samples are; every third one ends a segment.

    With `gate` cleared, it waits before each segment. `calls` are its options, and how many segments were read.
    """

    supported_languages = ("en", "de")

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def transcribe(self, samples: Any, **options: Any) -> tuple[Iterator[Counted], Any]:
        call = {"seconds": len(samples) / INPUT_SAMPLE_RATE, "segments": 0, **options}
        self.calls.append(call)
        numbers = np.round(samples[::INPUT_SAMPLE_RATE] * 32_768).astype(int).tolist()
        groups: list[list[tuple[int, int]]] = [[]]
        for second, number in enumerate(numbers):
            groups[-1].append((second, number))
            if number % 3 == 2:
                groups.append([])
        found = [self._segment(group, options["word_timestamps"]) for group in groups if group]
        return self._read(found, call), SimpleNamespace(language=options["language"] or "en")

    def _read(self, segments: list[Counted], call: dict[str, Any]) -> Iterator[Counted]:
        for segment in segments:
            assert self.gate.wait(10)
            call["segments"] += 1
            yield segment

    def _segment(self, group: list[tuple[int, int]], timed: bool) -> Counted:
        words = [SimpleNamespace(start=second, word=f" {number}") for second, number in group]
        text = "".join(word.word for word in words)
        return Counted(group[0][0], group[-1][0] + 1, text, words if timed else None)


def counting(*numbers: int) -> bytes:
    return b"".join(np.full(INPUT_SAMPLE_RATE, number, "<i2").tobytes() for number in numbers)


@pytest.fixture
async def counted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[WhisperSTT, Counter]]:
    monkeypatch.setattr(whisper_decoder, "_has_speech", lambda _: True)
    model = Counter()
    stt = WhisperSTT("counter", lambda: Decoder(model))
    await stt.start()
    yield stt, model
    await stt.close()


async def partial_decoded(stream: WhisperStream) -> None:
    """Wait for the partial decode in progress."""
    assert stream.partial_task is not None
    await stream.partial_task


def words_of(transcript: Transcript) -> list[tuple[int, str]]:
    ends = [0, *(word.text_end for word in transcript.words)]
    return [
        (word.start_ms, transcript.text[begin : word.text_end].strip())
        for word, begin in zip(transcript.words, ends, strict=False)
    ]


async def test_partial_texts_come_while_the_user_speaks(tiny: WhisperSTT, flite: Flite) -> None:
    pcm = flite("the quick brown fox jumps over the lazy dog").pcm
    stream = tiny.open("en")
    partials = []
    for start in range(0, len(pcm), SECOND):
        partials.append(await stream.push(pcm[start : start + SECOND]))
        if stream.partial_task:
            await stream.partial_task
    assert partials[0] is None
    assert any(partials[1:])


async def test_the_final_text_has_timed_words(tiny: WhisperSTT, flite: Flite) -> None:
    speech = flite("hello world how are you today")
    stream = tiny.open("en")
    await stream.push(speech.pcm)
    transcript = await stream.finalize()
    assert transcript.final
    assert transcript.language == "en"
    assert transcript.text.strip() == transcript.text != ""
    assert transcript.words[-1].text_end == len(transcript.text)
    starts = [word.start_ms for word in transcript.words]
    assert starts == sorted(starts)
    assert starts[-1] <= speech.seconds * 1000


async def test_an_early_finalize_does_not_change_the_later_transcript(tiny: WhisperSTT, flite: Flite) -> None:
    pcm = flite("the quick brown fox jumps over the lazy dog").pcm
    halting, straight = tiny.open("en"), tiny.open("en")
    await halting.push(pcm[:SECOND])
    first = await halting.finalize()
    await halting.push(pcm[SECOND:])
    await straight.push(pcm)
    assert await halting.finalize() == await straight.finalize() != first


@pytest.mark.parametrize("kind", ["silence", "noise", "hum"])
async def test_sound_without_speech_has_no_text(tiny: WhisperSTT, kind: str) -> None:
    n = np.arange(3 * INPUT_SAMPLE_RATE)
    sound = {
        "silence": np.zeros(len(n)),
        "noise": np.random.default_rng(0).normal(0, 2000, len(n)),
        "hum": 8000 * np.sin(2 * np.pi * 50 * n / INPUT_SAMPLE_RATE),
    }
    stream = tiny.open()
    assert await stream.push(sound[kind].astype("<i2").tobytes()) is None
    assert (await stream.finalize()).text == ""
    await partial_decoded(stream)
    assert await stream.push(b"") is None


async def test_a_final_transcript_is_not_decoded_twice(counted: tuple[WhisperSTT, Counter]) -> None:
    stt, model = counted
    stream = stt.open()
    await stream.push(counting(1, 2))
    await partial_decoded(stream)
    first = await stream.finalize()
    calls = len(model.calls)
    assert await stream.finalize() is first
    assert len(model.calls) == calls


async def test_streams_do_not_mix(counted: tuple[WhisperSTT, Counter]) -> None:
    stt, _ = counted
    first, second = stt.open(), stt.open()
    for number in range(4):
        await first.push(counting(number))
        await second.push(counting(number + 50))
    assert (await first.finalize()).text == "0 1 2 3"
    assert (await second.finalize()).text == "50 51 52 53"


async def test_the_beginning_of_a_long_utterance_is_confirmed(counted: tuple[WhisperSTT, Counter]) -> None:
    stt, model = counted
    stream = stt.open()
    partial = None
    for number in range(80):
        partial = await stream.push(counting(number)) or partial
        await partial_decoded(stream)
        stream._next_partial = 0.0
    assert partial == " ".join(map(str, range(79)))
    transcript = await stream.finalize()
    assert transcript.text == " ".join(map(str, range(80)))
    assert words_of(transcript) == [(1000 * number, str(number)) for number in range(80)]
    assert max(call["seconds"] for call in model.calls) < 30
    assert "40 41" in model.calls[-1]["initial_prompt"]


async def test_a_language_is_passed_by_its_code(counted: tuple[WhisperSTT, Counter]) -> None:
    stt, model = counted
    for language in ("de-AT", "tlh", None):
        stream = stt.open(language)
        await stream.push(counting(1))
        await stream.finalize()
    assert [call["language"] for call in model.calls if call["word_timestamps"]] == ["de", None, None]


async def test_a_failing_model_fails_the_turn_only(
    counted: tuple[WhisperSTT, Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = counted[0].open()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr(Counter, "transcribe", broken)
        await stream.push(counting(1))
        with pytest.raises(EngineFailure, match="out of memory"):
            await stream.finalize()
    assert (await stream.finalize()).text == "1"


async def test_a_cancelled_finalize_stops_decoding(counted: tuple[WhisperSTT, Counter]) -> None:
    stt, model = counted
    stream = stt.open()
    model.gate.clear()
    await stream.push(counting(*range(12)))
    finalizing = asyncio.create_task(stream.finalize())
    while not any(call["word_timestamps"] for call in model.calls):
        await asyncio.sleep(0.001)  # no event crosses into the model's thread
    finalizing.cancel()
    await asyncio.wait([finalizing])
    model.gate.set()
    assert (await stream.finalize()).text == " ".join(map(str, range(12)))
    segments = [call["segments"] for call in model.calls if call["word_timestamps"]]
    assert segments == [1, 4]


@pytest.mark.parametrize(
    ("drops", "values"),
    [
        (False, {}),
        (False, {"avg_logprob": -3.0}),
        (False, {"no_speech_prob": 0.9}),
        (True, {"avg_logprob": -3.0, "no_speech_prob": 0.9}),
        (True, {"compression_ratio": 3.0}),
    ],
)
def test_hallucinations_are_dropped(drops: bool, values: dict[str, float]) -> None:
    assert HallucinationFilter().drops(Counted(0, 1, " Thank you.", **values)) is drops


def test_a_missing_package_or_model_is_a_setup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="no folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(SetupError, match="ct2-transformers-converter"):
        check_folder(tmp_path)
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra whisper"):
        make_stt("small", Settings())


def test_an_unknown_size_is_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="There is no Whisper called 'huge'"):
        load_model("huge")
    (folder.parent / "model.bin").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="could not be loaded"):
        load_model(str(folder.parent))
