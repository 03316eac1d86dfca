"""The caches equal a computation in one pass, in whatever steps they were computed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoFeatureExtractor

from echosight.conversation import ImagePart, Item, Part, TextPart, pcm_part
from echosight.engines import Chunk, TextChunk
from echosight.engines.omni.conversation_cache import ConversationCache
from echosight.engines.omni.model_runner import ModelRunner
from echosight.engines.omni.models.batched_kv_cache import BatchedKvCache
from echosight.engines.runtime.sampling import SamplingParams
from tests.engines.omni.speech import (
    CLOSE,
    FIRST,
    SECOND,
    SYSTEM,
    assistant,
    extract_features,
    first_logits,
    image_frame,
    reply_to,
    run_together,
    snapshot,
    sound,
    spoken_request,
    user,
)


def in_one_pass(model: Any, extractor: Any, pcm: bytes, cuts: list[int], image: Any, text: str, order: str) -> Any:
    """Logits (vocabulary,) of upstream's forward over the whole prompt, with positions that it computes itself.

    `order` has a letter for each part of the user's turn: s the next part of the speech (`cuts`: where they end, in
    frames), i the image, t the text.
    """
    tokens, images = model.tokens, model.encoders.images
    whole = extract_features(extractor, pcm, zero_tail=model.encoders.zero_tail)
    frames = int(whole["attention_mask"].sum())
    parts = torch.tensor_split(whole["input_features"][0, :, :frames], cuts, 1)
    longest = max(part.shape[1] for part in parts)
    features = torch.stack([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])
    mask = torch.stack([torch.arange(longest) < part.shape[1] for part in parts]).long()
    pixels = images(images=[image], return_tensors="pt")
    image_tokens = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
    ids = [*tokens.header("system"), *tokens.encode(SYSTEM), *tokens.footer, *tokens.header("user")]
    speech = iter(parts)
    with torch.inference_mode():
        for letter in order:
            match letter:
                case "s":
                    count = len(model.encoders.encode_speech(next(speech).T))
                    ids += [tokens.audio_start, *[model.audio_token] * count, tokens.audio_end]
                case "i":
                    ids += [tokens.image_start, *[model.image_token] * image_tokens, tokens.image_end]
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
def extractor(folders: dict[str, Path], model_type: str) -> Any:
    reader: Any = AutoFeatureExtractor
    return reader.from_pretrained(folders[model_type])


def long_speech(model: Any) -> bytes:
    """A little more than two windows of the encoder."""
    return sound(2 * model.encoders.window / 100 + 1.337)


def growing(pcm: bytes, step: int, *more: Part) -> list[Item]:
    """A pending turn after each of its packets of `step` samples."""
    return [user("one", pcm_part(pcm[: 2 * end]), *more) for end in range(step, len(pcm) // 2, step)]


def decode(part: ImagePart) -> Any:
    return Image.open(io.BytesIO(part.frame.data)).convert("RGB")


@pytest.mark.parametrize("shown", ["behind the speech", "within the speech"])
def test_prefill_during_speech_equals_one_pass(model: Any, extractor: Any, shown: str) -> None:
    pcm = long_speech(model)
    length = model.encoders.window * 10
    at_ms = len(pcm) // 32 if shown == "behind the speech" else length - 300
    part = ImagePart(image_frame(), at_ms)
    cache = ConversationCache(model, 3000)
    with torch.inference_mode():
        for item in growing(pcm, 4000):
            visible = (part,) if item.audio is not None and item.audio.duration_ms >= at_ms else ()
            cache.prefill_turn(snapshot(turn=Item("user", (*item.parts, *visible), "one")))
        assert cache.context.computed > 20, "nothing was computed while the user spoke"
    logits = first_logits(cache, snapshot(user("one", pcm_part(pcm), part, TextPart("look"))))
    cuts, order = ([], "sit") if shown == "behind the speech" else ([model.encoders.window], "sist")
    reference = in_one_pass(model, extractor, pcm, cuts, decode(part), "look", order)
    assert (logits - reference).abs().max() <= CLOSE


@pytest.mark.parametrize("step", [320, 1601, 16000])
def test_packets_of_any_size_give_equal_caches(model: Any, step: int) -> None:
    pcm = long_speech(model)
    whole, packets = ConversationCache(model, 3000), ConversationCache(model, 3000)
    with torch.inference_mode():
        for item in growing(pcm, step)[:: max(1, 16000 // step)]:
            packets.prefill_turn(snapshot(turn=item))
    seen = snapshot(user("one", pcm_part(pcm)))
    assert torch.allclose(first_logits(whole, seen), first_logits(packets, seen), atol=1e-5, rtol=0)


def test_the_next_turn_on_a_kept_cache_equals_a_fresh_computation(runner: ModelRunner, model: Any) -> None:
    reply = reply_to(runner, snapshot(FIRST), spoken_request(model))
    cache = runner._caches["talk"]
    fresh = ConversationCache(model, 3000)
    with torch.inference_mode():
        fresh.begin_reply(snapshot(FIRST), None)
        fresh.context.write(reply.tokens, "assistant")
        fresh.context.write(model.tokens.footer, "assistant")
        fresh.context.flush()
        fresh.keep_reply(reply.text)
    seen = snapshot(FIRST, assistant("reply", reply.text), SECOND)
    before = cache.context.computed
    logits = first_logits(cache, seen)
    assert cache.context.computed > before, "the reply was not kept"
    assert (logits - first_logits(fresh, seen)).abs().max() <= CLOSE
    talkers = [each.context.kv.talker.layers[-1].keys for each in (cache, fresh)]
    assert (talkers[0] - talkers[1]).abs().max() <= CLOSE


def test_a_cancelled_reply_leaves_nothing_in_the_caches(runner: ModelRunner, model: Any) -> None:
    fresh = ConversationCache(model, 3000)
    generation = runner.start(snapshot(FIRST), spoken_request(model))
    for _ in range(9):
        runner.step([generation])
    runner.finish("talk", [generation])
    cache = runner._caches["talk"]
    for seen in (snapshot(FIRST), snapshot(FIRST, assistant("cut", "You are"), SECOND)):
        assert (first_logits(cache, seen) - first_logits(fresh, seen)).abs().max() <= CLOSE
    assert cache.context.end == fresh.context.end
    assert (
        cache.context.kv.talker.get_seq_length()
        == fresh.context.kv.talker.get_seq_length()
        == fresh.context.end.talker_tokens
    )


def test_interleaved_conversations_do_not_mix(runner: ModelRunner, model: Any) -> None:
    snapshots = [snapshot(FIRST, conversation_id="a"), snapshot(SECOND, conversation_id="b")]
    alone = [reply_to(ModelRunner(model, 1, 256), seen, spoken_request(model)) for seen in snapshots]
    generations = [runner.start(seen, spoken_request(model)) for seen in snapshots]
    collected: list[list[Chunk]] = [[], []]
    while not all(generation.done for generation in generations):
        for generation, chunks in zip(generations, collected, strict=True):
            chunks += runner.step([generation])[0]
    for generation, seen in zip(generations, snapshots, strict=True):
        runner.finish(seen.id, [generation])
    for generation, solo, chunks in zip(generations, alone, collected, strict=True):
        assert "".join(p.text for p in chunks if isinstance(p, TextChunk)) == solo.text
        assert generation.speech is not None and generation.speech.talker.frames == solo.frames


def test_a_batch_decodes_like_each_reply_alone(runner: ModelRunner, model: Any) -> None:
    warm = SamplingParams(1.0, 0.95)
    snapshots = [
        snapshot(FIRST, conversation_id="a"),
        snapshot(SECOND, conversation_id="b"),
        snapshot(user("t", TextPart("hello")), conversation_id="c"),
    ]
    lengths = [4, 12, 9]
    params = [(warm, warm), (SamplingParams(), warm), (SamplingParams(), SamplingParams())]
    requests = [replace(spoken_request(model, n, *pair), seed=n) for n, pair in zip(lengths, params, strict=True)]
    runners = [ModelRunner(model, 1, 256) for _ in snapshots]
    alone = [reply_to(lone, seen, request) for lone, seen, request in zip(runners, snapshots, requests, strict=True)]
    started = [(seen.id, runner.start(seen, request)) for seen, request in zip(snapshots, requests, strict=True)]
    together = run_together(runner, *started)
    for solo, joint in zip(alone, together, strict=True):
        assert (joint.text, joint.frames) == (solo.text, solo.frames)
    assert len(set(together[0].tokens)) > 2 and len(set(together[1].frames)) > 10
    for lone, seen, solo in zip(runners, snapshots, alone, strict=True):
        # Removed from the batch, each conversation continues as if it had been alone.
        after = snapshot(*seen.items, assistant("r", solo.text), user("n", TextPart("go on")), conversation_id=seen.id)
        again = first_logits(runner._caches[seen.id], after)
        assert (again - first_logits(lone._caches[seen.id], after)).abs().max() <= CLOSE


def test_stop_tokens_end_text_and_speech(runner: ModelRunner, model: Any) -> None:
    whole = reply_to(
        runner, snapshot(FIRST), replace(spoken_request(model, 12, SamplingParams(1.0), SamplingParams(1.0)), seed=4)
    )
    last_token = next(n for n, token in enumerate(whole.tokens) if n > 3 and token not in whole.tokens[:n])
    codes = [frame[0] for frame in whole.frames]
    last_code = next(n for n, code in enumerate(codes) if n > 3 and code not in codes[:n])
    model.text_stop_tokens, model.codec_stop_tokens = (
        frozenset({whole.tokens[last_token]}),
        frozenset({codes[last_code]}),
    )
    ended = reply_to(
        runner, snapshot(FIRST), replace(spoken_request(model, 12, SamplingParams(1.0), SamplingParams(1.0)), seed=4)
    )
    assert ended.tokens == whole.tokens[:last_token]
    assert ended.summary is not None and ended.summary.finish == "stop"
    # The talker gets the end of the text where it got text tokens before, so the speech may end elsewhere.
    assert ended.frames[: last_token - 1] == whole.frames[: min(last_token - 1, last_code)]
    assert len(ended.pcm) > 0 and ended.kinds.endswith("G")


def test_a_reply_without_text_has_no_speech(runner: ModelRunner, model: Any) -> None:
    model.text_stop_tokens = frozenset(range(1000))
    reply = reply_to(runner, snapshot(FIRST), spoken_request(model))
    assert (reply.text, reply.pcm, reply.kinds) == ("", b"", "G")
    assert reply.summary is not None and reply.summary.usage.output_text == 0


def test_a_fixed_cache_as_on_a_gpu_decodes_the_same(
    runner: ModelRunner, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = [
        snapshot(FIRST, conversation_id="a"),
        snapshot(SECOND, conversation_id="b"),
        snapshot(user("t", TextPart("hello")), conversation_id="c"),
    ]
    alone = [reply_to(runner, seen, spoken_request(model, 4 + n)) for n, seen in enumerate(snapshots)]
    for name, config in (("thinker_batch", model.thinker.config.text_config), ("talker_batch", model._talker_config())):
        fixed = BatchedKvCache("cpu", torch.float32, config, rows=4, length=700, fixed=True)
        monkeypatch.setattr(model, name, fixed)
    model.record_steps()
    started = [(seen.id, runner.start(seen, spoken_request(model, 4 + n))) for n, seen in enumerate(snapshots)]
    for solo, joint in zip(alone, run_together(runner, *started), strict=True):
        assert (joint.text, joint.frames) == (solo.text, solo.frames)


def test_speech_starts_before_the_text_ends(runner: ModelRunner, model: Any) -> None:
    reply = reply_to(runner, snapshot(FIRST), spoken_request(model, 55))
    assert reply.kinds.index("S") < reply.kinds.rindex("T")
    assert reply.kinds.endswith("G") and reply.summary is not None and reply.summary.finish == "length"
