"""The parts that need no model: spectrogram, positions, sampling, words, text out of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, WhisperFeatureExtractor

from echosight.engines.omni import positions
from echosight.engines.omni.batched_kv_cache import Rows, trim
from echosight.engines.omni.mel import StreamingLogMel
from echosight.engines.omni.tokens import TextStream, Tokens
from echosight.engines.omni.word_timer import WordClock
from echosight.engines.runtime.sampling import (
    BatchSamplingParams,
    Rng,
    SamplingParams,
    apply_repetition_penalty,
    sample,
)
from tests.engines.omni import tiny
from tests.engines.omni.speech import sound


# Without padding the extractor cannot reflect audio shorter than half a transform.
@pytest.mark.parametrize(
    ("zero_tail", "samples"),
    [*((True, n) for n in (100, 399, 16000, 33333, 64000)), *((False, n) for n in (480, 16000, 33333, 64000))],
)
def test_mel_is_that_of_the_extractor(zero_tail: bool, samples: int) -> None:
    whisper: Any = WhisperFeatureExtractor
    extract = whisper(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400, chunk_length=30)
    wave = (np.frombuffer(sound(samples / 16000 + 0.1), "<i2")[:samples] / 32768).astype("f4")
    whole = extract(
        wave,
        sampling_rate=16000,
        padding="max_length" if zero_tail else True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    expected = whole["input_features"][0, :, : int(whole["attention_mask"].sum())].T
    mel = StreamingLogMel(
        torch.from_numpy(np.asarray(extract.mel_filters)).float(), n_fft=400, hop=160, window=200, zero_tail=zero_tail
    )
    frames = []
    for start in range(0, samples, 321):
        frames += mel.push(torch.from_numpy(wave[start : start + 321]))
    assert all(len(window) == 200 for window in frames)
    found = torch.cat([*frames, mel.finish()])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_needed_names_the_sample_that_completes_a_window() -> None:
    mel = StreamingLogMel(torch.rand(201, 4), n_fft=400, hop=160, window=10, zero_tail=True)
    for _ in range(3):
        needed = mel.needed
        assert mel.push(torch.zeros(needed - mel.samples - 1)) == []
        assert len(mel.push(torch.zeros(1))) == 1
        assert mel.needed == needed + 1600


def test_a_picture_spans_rows_and_columns_and_the_text_goes_on_behind() -> None:
    places = positions.picture(5, 2, 3)
    assert places.tolist() == [
        [5, 6, 6, 6, 6, 6, 6, 9],
        [5, 6, 6, 6, 7, 7, 7, 9],
        [5, 6, 7, 8, 6, 7, 8, 9],
    ]
    assert positions.linear(4, 2).tolist() == [[4, 5]] * 3


def test_choosing_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, -1)
    chances = torch.tensor(Rng(0).draw(4000))

    def shares(taste: SamplingParams) -> Any:
        tokens = sample(logits, chances, BatchSamplingParams.stack([taste] * 4000, "cpu"))
        return pytest.approx([float((tokens == n).float().mean()) for n in range(4)], abs=0.03)

    assert shares(SamplingParams(0.0)) == [1, 0, 0, 0]
    assert shares(SamplingParams(1.0)) == [0.5, 0.3, 0.15, 0.05]
    assert shares(SamplingParams(1.0, top_p=0.6)) == [0.625, 0.375, 0, 0]
    assert shares(SamplingParams(1.0, top_k=1)) == [1, 0, 0, 0]
    assert shares(SamplingParams(2.0)) == [0.5**0.5 / 1.866, 0.3**0.5 / 1.866, 0.15**0.5 / 1.866, 0.05**0.5 / 1.866]
    assert sample(logits[:1], torch.tensor([1.0]), BatchSamplingParams.stack([SamplingParams(1.0)], "cpu")).item() == 3


def test_each_row_has_its_own_taste_and_chance() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 2)
    tastes = BatchSamplingParams.stack([SamplingParams(0.0), SamplingParams(5.0)], "cpu")
    assert sample(logits, torch.tensor([0.99, 0.99]), tastes).tolist() == [2, 0]
    seen = torch.tensor([[True, False, False]])
    assert apply_repetition_penalty(torch.tensor([[4.0, 1.0, -1.0]]), seen, torch.tensor([2.0])).tolist() == [
        [2.0, 1.0, -1.0]
    ]


def test_text_streams_as_whole_characters_and_never_as_markers() -> None:
    tokens = Tokens(tiny.tokenizer())
    text = "Grüße, 你好 👋 <|im_end|> end\n"
    ids = tokens.encode(text)
    assert tokens.end not in ids
    stream = TextStream(tokens)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == stream.text == text
    assert "\ufffd" not in "".join(pieces)
    assert [stream.push(token) for token in (tokens.end, tokens.audio_start, tokens.image_end)] == [""] * 3
    half = ids[: next(i for i, piece in enumerate(pieces) if not piece) + 1]
    cut = TextStream(tokens)
    assert "\ufffd" not in "".join(cut.push(token) for token in half) and "\ufffd" in cut.finish()


def test_words_lie_within_their_speech_and_not_before_their_tokens() -> None:
    clock = WordClock(20.0)
    text = "One two three four. Five sixteen"
    for frame, start in enumerate(range(0, len(text), 2)):
        clock.give(text[start : start + 2], frame)
    early = clock.spoken(0, 600, final=False)
    later = clock.spoken(600, 1200, final=False)
    rest = clock.spoken(1200, 2000, final=True)
    words = [*early, *later, *rest]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
    assert all(word.start_ms < 600 for word in early) and len(early) >= 2
    assert all(600 <= word.start_ms < 1200 for word in later) and later
    assert all(1200 <= word.start_ms <= 2000 for word in rest) and rest
    slow = WordClock(1000.0)
    for frame, word in enumerate(["a ", "b ", "c "]):
        slow.give(word, frame)
    assert [word.start_ms for word in slow.spoken(0, 5000, final=False)] == [0, 1000, 2000]


def test_each_ideograph_is_a_word() -> None:
    clock = WordClock(20.0)
    clock.give("你好 world", 0)
    assert [word.text_end for word in clock.spoken(0, 3000, final=True)] == [1, 2, 8]


class Layout:
    num_hidden_layers = 2
    num_key_value_heads = 1
    head_dim = 2


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_keep_each_answers_own_keys(fixed: bool) -> None:
    rows = Rows("cpu", torch.float32, Layout, rows=4, length=600, fixed=fixed)
    caches: dict[str, Any] = {name: DynamicCache() for name in "abc"}
    for number, (name, cache) in enumerate(caches.items()):
        for layer in range(2):
            cache.update(torch.full((1, 1, 3 + number, 2), float(number)), torch.zeros(1, 1, 3 + number, 2), layer)
        rows.join(name, cache, 3 + number)
    for owners, marks in ((["c", "a"], [10.0, 11.0]), (["a", "b", "c"], [20.0, 21.0, 22.0])):
        step = rows.step(owners)
        new = torch.tensor(step.place(marks, -1.0))[:, None, None, None].expand(-1, 1, 1, 2)
        for layer in range(2):
            keys, _ = step.update(new, new, layer)
        for owner, mark, place in zip(owners, marks, step.places, strict=True):
            kept = keys[place, 0, step.mask[place, 0, 0], 0]
            assert len(kept) == rows.length_of(owner) and kept[-1] == mark and kept[0] == "abc".index(owner)
    rows.leave("a")
    rows.leave("a")
    rows.hand_over("c", caches["c"], 5)
    assert caches["c"].layers[1].keys[0, 0, :, 0].tolist() == [2, 2, 2, 2, 2, 10, 22]
    trim(caches["c"], 6)
    assert caches["c"].get_seq_length() == 6
    assert [rows.length_of(name) for name in "bc"] == [5, 7]
