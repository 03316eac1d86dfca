"""hibari with its real weights: what it says, when each word begins, and how loud it is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import numpy as np
import pytest

from echosight.audio.pcm import pcm_to_float
from echosight.audio.resampling import resample
from echosight.engines.stt.whisper_decoder import Decoder
from echosight.engines.stt.whisper_model import load_model
from echosight.engines.tts.hibari import AUDIBLE, HibariModel, with_output
from echosight.engines.tts.hibari import load_model as load_hibari
from echosight.engines.tts.local import LocalTTS
from echosight.media import AudioChunk, Word
from echosight.options import GenerateOptions

TEXTS = [
    "The train to Paris leaves at noon from the second platform.",
    "I read the book that you will read tomorrow.",
    "The quick brown fox jumps over the lazy dog near the river bank.",
]
MAX_WORD_ERROR_MS = 80
"""Mean distance from the recogniser's own word times, which are multiples of 20 ms."""


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(load_model("tiny.en", "cpu"), short_window=True)


@pytest.fixture(scope="module")
def model() -> HibariModel:
    return load_hibari()


@pytest.fixture
async def tts(model: HibariModel) -> AsyncIterator[LocalTTS]:
    tts = LocalTTS("hibari", lambda: model, model.rate)
    await tts.start()
    yield tts
    await tts.close()


async def speak(tts: LocalTTS, text: str, **options: float) -> tuple[bytes, list[Word]]:
    pcm = b""
    words: list[Word] = []
    async for chunk in tts.synthesize(text, GenerateOptions(**options)):  # type: ignore[arg-type]
        pcm += chunk.pcm
        words += chunk.words
    return pcm, words


def plain(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.mark.parametrize("text", TEXTS)
async def test_a_recogniser_understands_it_and_times_its_words_alike(
    tts: LocalTTS, decoder: Decoder, text: str
) -> None:
    pcm, words = await speak(tts, text)
    (segment,), _ = decoder.decode(resample(AudioChunk(pcm, tts.rate), 16_000).pcm, "en", "", True, lambda: True)
    assert plain(segment.text) == plain(text)
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    heard = [word.start_ms for word in segment.words if plain(word.text)]
    assert len(heard) == len(words)
    assert np.mean(np.abs(np.subtract(heard, [word.start_ms for word in words]))) <= MAX_WORD_ERROR_MS


async def test_it_begins_at_once_at_the_level_of_the_other_voices(tts: LocalTTS) -> None:
    for text in TEXTS:
        samples = pcm_to_float((await speak(tts, text))[0])
        audible = np.flatnonzero(np.abs(samples) > AUDIBLE)
        assert audible[0] / tts.rate <= 0.03
        assert (len(samples) - audible[-1]) / tts.rate <= 0.21
        level = 20 * np.log10(np.sqrt(np.mean(samples[audible] ** 2)))
        assert -21.5 <= level <= -18.5
        assert np.abs(samples).max() < 1


async def test_numbers_and_several_sentences_have_words_in_order(tts: LocalTTS) -> None:
    text = "Dr. Smith paid $12.50 for it. How are you?"
    pcm, words = await speak(tts, text)
    ends = [word.text_end for word in words]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(text)
    starts = [word.start_ms for word in words]
    assert starts == sorted(starts)
    assert starts[-1] < len(pcm) / 2 / tts.rate * 1000


async def test_speed_changes_the_length(tts: LocalTTS) -> None:
    slow, normal, fast = [len((await speak(tts, TEXTS[0], speed=speed))[0]) for speed in (0.7, 1.0, 1.5)]
    assert slow > normal > fast


async def test_text_without_words_is_silent(tts: LocalTTS) -> None:
    assert await speak(tts, "") == (b"", [])
    assert await speak(tts, "   ") == (b"", [])


def test_an_output_is_added_to_a_serialized_model() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Neg", ["x"], ["inner"]), helper.make_node("Abs", ["inner"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, kind, [1])] for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "graph", *ends))
    merged = onnx.load_from_string(with_output(model.SerializeToString(), b"inner"))
    assert [output.name for output in merged.graph.output] == ["y", "inner"]
    assert len(merged.graph.node) == 2
