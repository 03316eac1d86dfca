"""The parts that need no model: spectrogram, positions, sampling, word times, tokens to text, batched KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, WhisperFeatureExtractor

from echosight.audio.pcm import pcm_to_float
from echosight.engines.omni.models.batched_kv_cache import BatchedKvCache
from echosight.engines.omni.models.kv_caches import trim
from echosight.engines.omni.models.mel import StreamingLogMel
from echosight.engines.omni.models.positions import image_positions, linear_positions
from echosight.engines.omni.models.tokens import ChatTokens, TextDecoder
from echosight.engines.omni.word_timer import TalkerWordTimer
from echosight.engines.runtime.sampling import (
    BatchSamplingParams,
    Rng,
    SamplingParams,
    apply_repetition_penalty,
    sample,
)
from tests.engines.omni import tiny
from tests.engines.omni.speech import extract_features, sound


# Without padding the extractor cannot reflect audio shorter than half a transform.
@pytest.mark.parametrize(
    ("zero_tail", "samples"),
    [*((True, n) for n in (100, 399, 16000, 33333, 64000)), *((False, n) for n in (480, 16000, 33333, 64000))],
)
def test_the_spectrogram_equals_that_of_the_feature_extractor(zero_tail: bool, samples: int) -> None:
    whisper: Any = WhisperFeatureExtractor
    extractor = whisper(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400, chunk_length=30)
    pcm = sound(samples / 16000 + 0.1)[: 2 * samples]
    reference = extract_features(extractor, pcm, zero_tail=zero_tail)
    expected = reference["input_features"][0, :, : int(reference["attention_mask"].sum())].T
    mel = StreamingLogMel(
        torch.from_numpy(np.asarray(extractor.mel_filters)).float(), n_fft=400, hop=160, window=200, zero_tail=zero_tail
    )
    wave = torch.from_numpy(pcm_to_float(pcm))
    frames = []
    for start in range(0, samples, 321):
        frames += mel.push(wave[start : start + 321])
    assert all(len(window) == 200 for window in frames)
    found = torch.cat([*frames, mel.flush()])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_samples_needed_is_the_sample_that_completes_a_window() -> None:
    mel = StreamingLogMel(torch.rand(201, 4), n_fft=400, hop=160, window=10, zero_tail=True)
    for _ in range(3):
        needed = mel.samples_needed
        assert mel.push(torch.zeros(needed - mel.samples - 1)) == []
        assert len(mel.push(torch.zeros(1))) == 1
        assert mel.samples_needed == needed + 1600


def test_positions_of_an_image_span_rows_and_columns() -> None:
    assert image_positions(5, 2, 3).tolist() == [
        [5, 6, 6, 6, 6, 6, 6, 9],
        [5, 6, 6, 6, 7, 7, 7, 9],
        [5, 6, 7, 8, 6, 7, 8, 9],
    ]
    assert linear_positions(4, 2).tolist() == [[4, 5]] * 3


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, -1)
    uniform = torch.tensor(Rng(0).draw(4000))

    def shares(params: SamplingParams) -> Any:
        tokens = sample(logits, uniform, BatchSamplingParams.stack([params] * 4000, "cpu"))
        return pytest.approx([float((tokens == n).float().mean()) for n in range(4)], abs=0.03)

    assert shares(SamplingParams(0.0)) == [1, 0, 0, 0]
    assert shares(SamplingParams(1.0)) == [0.5, 0.3, 0.15, 0.05]
    assert shares(SamplingParams(1.0, top_p=0.6)) == [0.625, 0.375, 0, 0]
    assert shares(SamplingParams(1.0, top_k=1)) == [1, 0, 0, 0]
    assert shares(SamplingParams(2.0)) == [0.5**0.5 / 1.866, 0.3**0.5 / 1.866, 0.15**0.5 / 1.866, 0.05**0.5 / 1.866]
    assert sample(logits[:1], torch.tensor([1.0]), BatchSamplingParams.stack([SamplingParams(1.0)], "cpu")).item() == 3


def test_each_row_has_its_own_parameters_and_random_number() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 2)
    params = BatchSamplingParams.stack([SamplingParams(0.0), SamplingParams(5.0)], "cpu")
    assert sample(logits, torch.tensor([0.99, 0.99]), params).tolist() == [2, 0]
    seen = torch.tensor([[True, False, False]])
    assert apply_repetition_penalty(torch.tensor([[4.0, 1.0, -1.0]]), seen, torch.tensor([2.0])).tolist() == [
        [2.0, 1.0, -1.0]
    ]


def test_text_is_streamed_in_whole_characters_without_markers() -> None:
    tokens = ChatTokens(tiny.tokenizer())
    text = "Grüße, 你好 👋 <|im_end|> end\n"
    ids = tokens.encode(text)
    assert tokens.end not in ids
    decoder = TextDecoder(tokens)
    chunks = [decoder.push(token) for token in ids]
    assert "".join(chunks) == decoder.text == text
    assert "\ufffd" not in "".join(chunks)
    assert [decoder.push(token) for token in (tokens.end, tokens.audio_start, tokens.image_end)] == [""] * 3
    half = ids[: next(i for i, chunk in enumerate(chunks) if not chunk) + 1]
    cut = TextDecoder(tokens)
    assert "\ufffd" not in "".join(cut.push(token) for token in half) and "\ufffd" in cut.flush()


def test_words_begin_within_their_speech_and_after_their_tokens() -> None:
    timer = TalkerWordTimer(20.0)
    text = "One two three four. Five sixteen"
    for frame, start in enumerate(range(0, len(text), 2)):
        timer.add(text[start : start + 2], frame)
    early = timer.words_between(0, 600, final=False)
    later = timer.words_between(600, 1200, final=False)
    rest = timer.words_between(1200, 2000, final=True)
    words = [*early, *later, *rest]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
    assert all(word.start_ms < 600 for word in early) and len(early) >= 2
    assert all(600 <= word.start_ms < 1200 for word in later) and later
    assert all(1200 <= word.start_ms <= 2000 for word in rest) and rest
    slow = TalkerWordTimer(1000.0)
    for frame, word in enumerate(["a ", "b ", "c "]):
        slow.add(word, frame)
    assert [word.start_ms for word in slow.words_between(0, 5000, final=False)] == [0, 1000, 2000]


def test_each_ideograph_is_a_word() -> None:
    timer = TalkerWordTimer(20.0)
    timer.add("你好 world", 0)
    assert [word.text_end for word in timer.words_between(0, 3000, final=True)] == [1, 2, 8]


class TextConfig:
    num_hidden_layers = 2
    num_key_value_heads = 1
    head_dim = 2


@pytest.mark.parametrize("fixed", [False, True])
def test_each_row_keeps_its_own_keys(fixed: bool) -> None:
    batch = BatchedKvCache("cpu", torch.float32, TextConfig, rows=4, length=600, fixed=fixed)
    caches: dict[str, Any] = {name: DynamicCache() for name in "abc"}
    for number, (name, cache) in enumerate(caches.items()):
        for layer in range(2):
            cache.update(torch.full((1, 1, 3 + number, 2), float(number)), torch.zeros(1, 1, 3 + number, 2), layer)
        batch.add(name, cache, 3 + number)
    for owners, marks in ((["c", "a"], [10.0, 11.0]), (["a", "b", "c"], [20.0, 21.0, 22.0])):
        step = batch.step(owners)
        new = torch.tensor(step.scatter(marks, -1.0))[:, None, None, None].expand(-1, 1, 1, 2)
        for layer in range(2):
            keys, _ = step.update(new, new, layer)
        for owner, mark, index in zip(owners, marks, step.indices, strict=True):
            row = keys[index, 0, step.mask[index, 0, 0], 0]
            assert len(row) == batch.length_of(owner) and row[-1] == mark and row[0] == "abc".index(owner)
    batch.remove("a")
    batch.remove("a")
    batch.export("c", caches["c"], 5)
    assert caches["c"].layers[1].keys[0, 0, :, 0].tolist() == [2, 2, 2, 2, 2, 10, 22]
    trim(caches["c"], 6)
    assert caches["c"].get_seq_length() == 6
    assert [batch.length_of(name) for name in "bc"] == [5, 7]
