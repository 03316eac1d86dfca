"""The caches hold what a computation in one pass would give, whatever way they came about."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoFeatureExtractor

from echosight.conversation import ImagePart, Item, Part, TextPart
from echosight.engines import Chunk, TextChunk
from echosight.engines.omni.batched_kv_cache import Rows
from echosight.engines.omni.conversation_cache import Memory
from echosight.engines.omni.model_runner import Stage
from echosight.engines.runtime.sampling import SamplingParams
from tests.engines.omni.speech import (
    CLOSE,
    FIRST,
    SECOND,
    SYSTEM,
    ask,
    first_logits,
    heard,
    photo,
    run,
    sound,
    spoken,
    user,
    view,
    wish,
)


def in_one_pass(model: Any, extract: Any, said: bytes, cuts: list[int], picture: Any, text: str, order: str) -> Any:
    """Upstream's own forward over the whole prompt, with the positions that it finds itself.

    `order` names what the user's turn holds: s the next stretch of speech (`cuts`: where they end, in frames),
    p the picture, t the text.
    """
    tokens, images = model.tokens, model._images
    wave = (np.frombuffer(said, "<i2") / 32768).astype("f4")
    whole = extract(
        wave,
        sampling_rate=16000,
        padding="max_length" if model.zero_tail else True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    frames = int(whole["attention_mask"].sum())
    parts = torch.tensor_split(whole["input_features"][0, :, :frames], cuts, 1)
    longest = max(part.shape[1] for part in parts)
    features = torch.stack([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])
    mask = torch.stack([torch.arange(longest) < part.shape[1] for part in parts]).long()
    pixels = images(images=[picture], return_tensors="pt")
    seen = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
    ids = [*tokens.header("system"), *tokens.encode(SYSTEM), *tokens.footer, *tokens.header("user")]
    stretches = iter(parts)
    with torch.inference_mode():
        for what in order:
            match what:
                case "s":
                    count = len(model.encode_speech(next(stretches).T))
                    ids += [tokens.audio_start, *[model.audio_token] * count, tokens.audio_end]
                case "p":
                    ids += [tokens.image_start, *[model.image_token] * seen, tokens.image_end]
                case "t":
                    ids += tokens.encode(text)
        prompt = torch.tensor([[*ids, *tokens.footer, *tokens.header("assistant")]])
        out = model.thinker(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            input_features=features,
            feature_attention_mask=mask,
            pixel_values=pixels["pixel_values"],
            image_grid_thw=pixels["image_grid_thw"],
        )
    return out.logits[0, -1]


@pytest.fixture
def extract(folders: dict[str, Path], kind: str) -> Any:
    reader: Any = AutoFeatureExtractor
    return reader.from_pretrained(folders[kind])


def long_speech(model: Any) -> bytes:
    """Two windows of the encoder and a bit."""
    return sound(2 * model.window / 100 + 1.337)


def growing(said: bytes, step: int, *more: Part) -> list[Item]:
    """An open turn after each of its packets of `step` samples."""
    return [user("one", heard(said[: 2 * end]), *more) for end in range(step, len(said) // 2, step)]


def picture_of(part: ImagePart) -> Any:
    return Image.open(io.BytesIO(part.frame.data)).convert("RGB")


@pytest.mark.parametrize("shown", ["behind the speech", "within it"])
def test_prefill_during_speech_is_one_pass(model: Any, extract: Any, shown: str) -> None:
    said = long_speech(model)
    length = model.window * 10
    at_ms = len(said) // 32 if shown == "behind the speech" else length - 300
    part = ImagePart(photo(), at_ms)
    memory = Memory(model, 3000)
    with torch.inference_mode():
        for item in growing(said, 4000):
            visible = (part,) if item.audio is not None and item.audio.duration_ms >= at_ms else ()
            memory.follow(view(turn=Item("user", (*item.parts, *visible), "one")))
        assert memory.context.computed > 20, "nothing was computed while the user spoke"
    logits = first_logits(memory, view(user("one", heard(said), part, TextPart("look"))))
    cuts, order = ([], "spt") if shown == "behind the speech" else ([model.window], "spst")
    reference = in_one_pass(model, extract, said, cuts, picture_of(part), "look", order)
    assert (logits - reference).abs().max() <= CLOSE


@pytest.mark.parametrize("step", [320, 1601, 16000])
def test_packets_of_any_size_give_the_same(model: Any, step: int) -> None:
    said = long_speech(model)
    whole, packets = Memory(model, 3000), Memory(model, 3000)
    with torch.inference_mode():
        for item in growing(said, step)[:: max(1, 16000 // step)]:
            packets.follow(view(turn=item))
    seen = view(user("one", heard(said)))
    assert torch.allclose(first_logits(whole, seen), first_logits(packets, seen), atol=1e-5, rtol=0)


def test_the_next_turn_on_kept_caches_is_a_fresh_computation(stage: Stage, model: Any) -> None:
    reply = ask(stage, view(FIRST), wish(model))
    kept = stage._memories["talk"]
    fresh = Memory(model, 3000)
    with torch.inference_mode():
        fresh.prepare_reply(view(FIRST), None)
        fresh.context.write(reply.tokens, "assistant")
        fresh.context.write(model.tokens.footer, "assistant")
        fresh.context.flush()
        fresh.keep_reply(reply.text)
    seen = view(FIRST, spoken("reply", reply.text), SECOND)
    before = kept.context.computed
    logits = first_logits(kept, seen)
    assert kept.context.computed > before, "the reply was not kept"
    assert (logits - first_logits(fresh, seen)).abs().max() <= CLOSE
    talkers = [memory.context.talker.layers[-1].keys for memory in (kept, fresh)]
    assert (talkers[0] - talkers[1]).abs().max() <= CLOSE


def test_what_was_interrupted_was_never_said(stage: Stage, model: Any) -> None:
    never = Memory(model, 3000)
    answer = stage.begin(view(FIRST), wish(model))
    for _ in range(9):
        stage.advance([answer])
    stage.end("talk", [answer])
    memory = stage._memories["talk"]
    for seen in (view(FIRST), view(FIRST, spoken("cut", "You are"), SECOND)):
        assert (first_logits(memory, seen) - first_logits(never, seen)).abs().max() <= CLOSE
    assert memory.context.at == never.context.at
    assert memory.context.talker.get_seq_length() == never.context.talker.get_seq_length() == never.context.at.talker


def test_conversations_are_told_apart(stage: Stage, model: Any) -> None:
    views = [view(FIRST, name="a"), view(SECOND, name="b")]
    alone = [ask(Stage(model, 1, 256), seen, wish(model)) for seen in views]
    answers = [stage.begin(seen, wish(model)) for seen in views]
    turns: list[list[Chunk]] = [[], []]
    while not all(answer.done for answer in answers):
        for answer, pieces in zip(answers, turns, strict=True):
            pieces += stage.advance([answer])[0]
    for answer, seen in zip(answers, views, strict=True):
        stage.end(seen.id, [answer])
    for answer, solo, pieces in zip(answers, alone, turns, strict=True):
        assert "".join(p.text for p in pieces if isinstance(p, TextChunk)) == solo.text
        assert answer.speech is not None and answer.speech.mouth.frames == solo.frames


def test_a_batch_decodes_as_each_alone(stage: Stage, model: Any) -> None:
    warm = SamplingParams(1.0, 0.95)
    views = [view(FIRST, name="a"), view(SECOND, name="b"), view(user("t", TextPart("hello")), name="c")]
    lengths = [4, 12, 9]
    tastes = [(warm, warm), (SamplingParams(), warm), (SamplingParams(), SamplingParams())]
    wishes = [replace(wish(model, n, *taste), seed=n) for n, taste in zip(lengths, tastes, strict=True)]
    stages = [Stage(model, 1, 256) for _ in views]
    alone = [ask(lone, seen, wanted) for lone, seen, wanted in zip(stages, views, wishes, strict=True)]
    begun = [(seen.id, stage.begin(seen, wanted)) for seen, wanted in zip(views, wishes, strict=True)]
    together = run(stage, *begun)
    for solo, joint in zip(alone, together, strict=True):
        assert (joint.text, joint.frames) == (solo.text, solo.frames)
    assert len(set(together[0].tokens)) > 2 and len(set(together[1].frames)) > 10
    for lone, seen, solo in zip(stages, views, alone, strict=True):
        # Split back, each goes on as if it had been alone.
        after = view(*seen.items, spoken("r", solo.text), user("n", TextPart("go on")), name=seen.id)
        again = first_logits(stage._memories[seen.id], after)
        assert (again - first_logits(lone._memories[seen.id], after)).abs().max() <= CLOSE


def test_answers_end_where_the_model_ends_them(stage: Stage, model: Any) -> None:
    whole = ask(stage, view(FIRST), replace(wish(model, 12, SamplingParams(1.0), SamplingParams(1.0)), seed=4))
    last_token = next(n for n, token in enumerate(whole.tokens) if n > 3 and token not in whole.tokens[:n])
    codes = [frame[0] for frame in whole.frames]
    last_code = next(n for n, code in enumerate(codes) if n > 3 and code not in codes[:n])
    model.text_ends, model.codec_ends = frozenset({whole.tokens[last_token]}), frozenset({codes[last_code]})
    ended = ask(stage, view(FIRST), replace(wish(model, 12, SamplingParams(1.0), SamplingParams(1.0)), seed=4))
    assert ended.tokens == whole.tokens[:last_token]
    assert ended.summary is not None and ended.summary.finish == "stop"
    # The speech is given the end of the text where it was given words before, so it may end elsewhere.
    assert ended.frames[: last_token - 1] == whole.frames[: min(last_token - 1, last_code)]
    assert len(ended.pcm) > 0 and ended.kinds.endswith("G")


def test_an_answer_without_words_is_silent(stage: Stage, model: Any) -> None:
    model.text_ends = frozenset(range(1000))
    said = ask(stage, view(FIRST), wish(model))
    assert (said.text, said.pcm, said.kinds) == ("", b"", "G")
    assert said.summary is not None and said.summary.usage.output_text == 0


def test_rows_as_a_gpu_has_them_decode_the_same(stage: Stage, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(FIRST, name="a"), view(SECOND, name="b"), view(user("t", TextPart("hello")), name="c")]
    alone = [ask(stage, seen, wish(model, 4 + n)) for n, seen in enumerate(views)]
    for name, layout in (("thinking", model.thinker.config.text_config), ("talking", model._talker_layout())):
        fixed = Rows("cpu", torch.float32, layout, rows=4, length=700, fixed=True)
        monkeypatch.setattr(model, name, fixed)
    model.record_steps()
    begun = [(seen.id, stage.begin(seen, wish(model, 4 + n))) for n, seen in enumerate(views)]
    for solo, joint in zip(alone, run(stage, *begun), strict=True):
        assert (joint.text, joint.frames) == (solo.text, solo.frames)


def test_speech_starts_before_the_text_ends(stage: Stage, model: Any) -> None:
    said = ask(stage, view(FIRST), wish(model, 55))
    assert said.kinds.index("S") < said.kinds.rindex("T")
    assert said.kinds.endswith("G") and said.summary is not None and said.summary.finish == "length"
