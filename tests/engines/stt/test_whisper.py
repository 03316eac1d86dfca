"""Whisper as a transcriber: the real program on a tiny random model, and its bookkeeping on a model that counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echosight.engines.stt import whisper
from echosight.engines.stt.whisper import Decoder, Guards, WhisperSTT, check_folder, read_model, transcriber
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript
from echosight.settings import Settings
from tests.conftest import Flite

SECOND = 2 * INPUT_SAMPLE_RATE
ANYTHING = Guards(no_speech=2, log_probability=-99, compression_ratio=999)
"""Random weights are sure of nothing."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("faster_whisper", "ctranslate2", "torch", "transformers"):
        pytest.importorskip(module)
    from tests.engines.stt.tiny_whisper import write_whisper

    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder(read_model(str(folder)), ANYTHING)


@pytest.fixture
async def tiny(decoder: Decoder) -> AsyncIterator[WhisperSTT]:
    made = WhisperSTT("tiny", lambda: decoder)
    await made.start()
    yield made
    await made.close()


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
    """A model that hears in each second the number that its samples are, and a pause after every third."""

    supported_languages = ("en", "de")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def transcribe(self, samples: Any, **options: Any) -> tuple[Iterator[Counted], Any]:
        self.asked.append({"seconds": len(samples) / INPUT_SAMPLE_RATE, **options})
        numbers = np.round(samples[::INPUT_SAMPLE_RATE] * 32_768).astype(int).tolist()
        groups: list[list[tuple[int, int]]] = [[]]
        for second, number in enumerate(numbers):
            groups[-1].append((second, number))
            if number % 3 == 2:
                groups.append([])
        found = [self._segment(group, options["word_timestamps"]) for group in groups if group]
        return iter(found), SimpleNamespace(language=options["language"] or "en")

    def _segment(self, group: list[tuple[int, int]], timed: bool) -> Counted:
        words = [SimpleNamespace(start=second, word=f" {number}") for second, number in group]
        text = "".join(word.word for word in words)
        return Counted(group[0][0], group[-1][0] + 1, text, words if timed else None)


def counting(*numbers: int) -> bytes:
    return b"".join(np.full(INPUT_SAMPLE_RATE, number, "<i2").tobytes() for number in numbers)


@pytest.fixture
async def counted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[WhisperSTT, Counter]]:
    monkeypatch.setattr(whisper, "_anybody_speaks", lambda _: True)
    model = Counter()
    made = WhisperSTT("counter", lambda: Decoder(model))
    await made.start()
    yield made, model
    await made.close()


async def looked(made: WhisperSTT, utterance: str) -> None:
    """Wait for the look in progress."""
    look = made._utterances[utterance].looking
    assert look is not None
    await look


def words_of(transcript: Transcript) -> list[tuple[int, str]]:
    ends = [0, *(word.text_end for word in transcript.words)]
    return [
        (word.start_ms, transcript.text[begin : word.text_end].strip())
        for word, begin in zip(transcript.words, ends, strict=False)
    ]


async def test_text_comes_while_the_user_speaks(tiny: WhisperSTT, flite: Flite) -> None:
    pcm = flite("the quick brown fox jumps over the lazy dog").pcm
    partials = []
    for at in range(0, len(pcm), SECOND):
        partials.append(await tiny.hear("a", pcm[at : at + SECOND], "en"))
        if tiny._utterances["a"].looking:
            await looked(tiny, "a")
    assert partials[0] is None
    assert any(partials[1:])


async def test_the_final_text_has_its_words_timed(tiny: WhisperSTT, flite: Flite) -> None:
    speech = flite("hello world how are you today")
    await tiny.hear("a", speech.pcm, "en")
    transcript = await tiny.finish("a")
    assert transcript.final
    assert transcript.language == "en"
    assert transcript.text.strip() == transcript.text != ""
    assert transcript.words[-1].text_end == len(transcript.text)
    starts = [word.start_ms for word in transcript.words]
    assert starts == sorted(starts)
    assert starts[-1] <= speech.seconds * 1000


async def test_going_on_after_finish_is_as_if_it_had_been_one(tiny: WhisperSTT, flite: Flite) -> None:
    pcm = flite("the quick brown fox jumps over the lazy dog").pcm
    await tiny.hear("a", pcm[:SECOND], "en")
    first = await tiny.finish("a")
    await tiny.hear("a", pcm[SECOND:], "en")
    await tiny.hear("b", pcm, "en")
    assert await tiny.finish("a") == await tiny.finish("b") != first


@pytest.mark.parametrize("kind", ["silence", "noise", "hum"])
async def test_where_nobody_speaks_there_is_no_text(tiny: WhisperSTT, kind: str) -> None:
    n = np.arange(3 * INPUT_SAMPLE_RATE)
    sound = {
        "silence": np.zeros(len(n)),
        "noise": np.random.default_rng(0).normal(0, 2000, len(n)),
        "hum": 8000 * np.sin(2 * np.pi * 50 * n / INPUT_SAMPLE_RATE),
    }
    assert await tiny.hear("a", sound[kind].astype("<i2").tobytes()) is None
    assert (await tiny.finish("a")).text == ""
    await looked(tiny, "a")
    assert await tiny.hear("a", b"") is None


async def test_what_is_final_is_not_decoded_again(counted: tuple[WhisperSTT, Counter]) -> None:
    made, model = counted
    await made.hear("a", counting(1, 2))
    await looked(made, "a")
    first = await made.finish("a")
    asked = len(model.asked)
    assert await made.finish("a") is first
    assert len(model.asked) == asked


async def test_utterances_do_not_mix(counted: tuple[WhisperSTT, Counter]) -> None:
    made, _ = counted
    for number in range(4):
        await made.hear("a", counting(number))
        await made.hear("b", counting(number + 50))
    assert (await made.finish("a")).text == "0 1 2 3"
    assert (await made.finish("b")).text == "50 51 52 53"


async def test_of_a_long_utterance_the_beginning_is_settled(counted: tuple[WhisperSTT, Counter]) -> None:
    made, model = counted
    partial = None
    for number in range(80):
        partial = await made.hear("a", counting(number)) or partial
        await looked(made, "a")
        made._utterances["a"].next_look = 0.0
    assert partial == " ".join(map(str, range(79)))
    transcript = await made.finish("a")
    assert transcript.text == " ".join(map(str, range(80)))
    assert words_of(transcript) == [(1000 * number, str(number)) for number in range(80)]
    assert max(asked["seconds"] for asked in model.asked) < 30
    assert "40 41" in model.asked[-1]["initial_prompt"]


async def test_a_language_is_asked_for_by_its_code(counted: tuple[WhisperSTT, Counter]) -> None:
    made, model = counted
    for utterance, language in (("a", "de-AT"), ("b", "tlh"), ("c", None)):
        await made.hear(utterance, counting(1), language)
        await made.finish(utterance)
    assert [a["language"] for a in model.asked if a["word_timestamps"]] == ["de", None, None]


async def test_what_it_never_heard_of_is_a_failure(counted: tuple[WhisperSTT, Counter]) -> None:
    made, _ = counted
    with pytest.raises(EngineFailure):
        await made.finish("nobody")
    await made.forget("nobody")


async def test_a_model_that_breaks_fails_the_turn_only(
    counted: tuple[WhisperSTT, Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = counted

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr(Counter, "transcribe", broken)
        await made.hear("a", counting(1))
        with pytest.raises(EngineFailure, match="out of memory"):
            await made.finish("a")
    assert (await made.finish("a")).text == "1"


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
def test_what_nobody_said_is_dropped(drops: bool, values: dict[str, float]) -> None:
    assert Guards().drop(Counted(0, 1, " Thank you.", **values)) is drops


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="no folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(SetupError, match="ct2-transformers-converter"):
        check_folder(tmp_path)
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra whisper"):
        transcriber("small", Settings())


def test_an_unknown_size_is_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="There is no Whisper called 'huge'"):
        read_model("huge")
    (folder.parent / "model.bin").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="could not be loaded"):
        read_model(str(folder.parent))
