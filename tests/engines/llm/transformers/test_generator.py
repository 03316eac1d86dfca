"""Generation on tiny random checkpoints: KV caches never change a reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from echosight.conversation import Conversation, TextPart
from echosight.engines import TextChunk
from echosight.engines.llm.transformers.checkpoint import Checkpoint
from echosight.engines.llm.transformers.generator import TextGenerator
from echosight.options import GenerateOptions
from tests.engines.llm.transformers.rig import (
    SHORT,
    assistant,
    conversation_of,
    first_items,
    generate,
    image_part,
    make_generator,
    request,
    user,
)


def test_a_reply_equals_that_of_transformers_generate(checkpoint: Checkpoint, kind: str) -> None:
    conversation = conversation_of(kind)
    generator = make_generator(checkpoint)
    _, segments = generator.template.prompt(request(conversation), 2000)
    ids = torch.tensor([[token for segment in segments for token in segment.ids]])
    kwargs: dict[str, Any] = {}
    images = [segment.tensors for segment in segments if segment.tensors]
    for name in ("pixel_values", "image_grid_thw") if images else ():
        kwargs[name] = torch.cat([tensors[name] for tensors in images])
    if images:
        image = checkpoint.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        kwargs["mm_token_type_ids"] = (ids == image).int()
    reference = checkpoint.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, **kwargs
    )[0, ids.shape[1] :]
    with generator.model.lease("x") as cache:
        logits = list(generator.model.prefill(cache, segments, 0))[-1]
        stop_tokens = [*checkpoint.stop_tokens]
        for token in reference.tolist():
            # `min_new_tokens` makes `generate` mask its stop tokens; the others keep their logits.
            logits = logits.clone()
            logits[stop_tokens] = float("-inf")
            assert int(logits.argmax()) == token
            logits = generator.model.step(cache, token)


def test_a_reply_on_a_kept_cache_equals_one_on_a_fresh_cache(checkpoint: Checkpoint, kind: str) -> None:
    conversation = conversation_of(kind)
    generator = make_generator(checkpoint)
    for items in (1, 3):
        generate(generator, first_items(conversation, items))
    text, summary = generate(generator, conversation)
    fresh, fresh_summary = generate(make_generator(checkpoint), conversation)
    assert text == fresh
    assert len(text) > 3
    assert fresh_summary.usage.cached == 0
    usage = summary.usage
    assert usage.cached > (usage.input_text + usage.input_image) // 2


def test_an_edited_item_rewinds_the_cache(checkpoint: Checkpoint, kind: str) -> None:
    conversation = conversation_of(kind)
    generator = make_generator(checkpoint)
    generate(generator, conversation)
    edited = first_items(conversation, 5)
    edited.items[1] = replace(assistant("the quick"), id=conversation.items[1].id, version=1)
    if kind == "qwen_vl":
        edited.items[2] = user("what do you hear?", image_part(99))
    text, summary = generate(generator, edited)
    assert text == generate(make_generator(checkpoint), edited)[0]
    assert 0 < summary.usage.cached < summary.usage.input_text


def test_a_cancelled_reply_leaves_nothing_in_the_cache(checkpoint: Checkpoint, kind: str) -> None:
    conversation = conversation_of(kind)
    generator = make_generator(checkpoint)
    steps = generator.generate(request(conversation), SHORT)
    text = ""
    while len(text) < 4:
        text += "".join(chunk.text for chunk in next(steps) if isinstance(chunk, TextChunk))
    steps.close()
    conversation.add(assistant(text[:3]))
    conversation.add(user("the lazy dog"))
    text, summary = generate(generator, conversation)
    assert summary.usage.cached > 30
    assert text == generate(make_generator(checkpoint), conversation)[0]


def test_interleaved_conversations_do_not_mix(checkpoint: Checkpoint, kind: str) -> None:
    conversations = [conversation_of(kind, turns) for turns in (1, 2, 3)]
    options = GenerateOptions(max_output_tokens=12, temperature=1.0)
    shared = make_generator(checkpoint)
    replies = [shared.generate(request(each), options, seed) for seed, each in enumerate(conversations)]
    texts = [""] * 3
    running = {0, 1, 2}
    while running:
        for n in [*running]:
            step = next(replies[n], None)
            if step is None:
                running.discard(n)
            texts[n] += "".join(chunk.text for chunk in step or () if isinstance(chunk, TextChunk))
    for seed, conversation in enumerate(conversations):
        alone = [p for step in make_generator(checkpoint).generate(request(conversation), options, seed) for p in step]
        assert texts[seed] == "".join(chunk.text for chunk in alone if isinstance(chunk, TextChunk))


def test_prefill_during_speech_does_not_change_the_reply(checkpoint: Checkpoint, kind: str) -> None:
    conversation = conversation_of(kind)
    last = conversation.items.pop()
    generator = make_generator(checkpoint)
    # The first partial transcript turns out to be wrong, and the turn goes on behind the second.
    for partial in ("hello 2, how are you toddy", "hello 2, how are you today and what"):
        growing = replace(last, parts=tuple(TextPart(partial) if isinstance(p, TextPart) else p for p in last.parts))
        list(generator.prefill(request(replace(conversation, items=[*conversation.items, growing])), partial))
    conversation.add(last)
    text, summary = generate(generator, conversation)
    assert text == generate(make_generator(checkpoint), conversation)[0]
    usage = summary.usage
    assert usage.input_text + usage.input_image - usage.cached < 25


def test_the_same_image_is_cached_and_another_is_not(checkpoints: dict[str, Checkpoint]) -> None:
    generator = make_generator(checkpoints["qwen_vl"])
    conversation = Conversation(items=[user("what do you see?", image_part(10))])
    generate(generator, conversation)
    again = generate(generator, conversation)[1]
    other = generate(generator, Conversation(conversation.id, items=[user("what do you see?", image_part(90))]))[1]
    assert again.usage.cached >= again.usage.input_image
    assert other.usage.cached < other.usage.input_image


def test_a_cache_beyond_the_limit_is_computed_again(llama: Checkpoint) -> None:
    small = make_generator(llama, limit_bytes=1)
    first, second = conversation_of("llama"), conversation_of("llama")
    expected = generate(make_generator(llama), first)[0]
    generate(small, first)
    assert generate(small, first)[1].usage.cached > 0
    generate(small, second)
    text, summary = generate(small, first)
    assert summary.usage.cached == 0
    assert text == expected


def test_a_failed_step_drops_the_cache(llama: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make_generator(llama)
    conversation = conversation_of("llama")
    expected = generate(generator, conversation)[0]

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="out of memory"):
        broken.setattr(llama.model.model, "forward", fail)
        generate(generator, conversation)
    text, summary = generate(generator, conversation)
    assert summary.usage.cached == 0
    assert text == expected


def test_the_token_limit_ends_a_reply(llama: Checkpoint) -> None:
    summary = generate(
        make_generator(llama), conversation_of("llama"), GenerateOptions(max_output_tokens=3, temperature=0.0)
    )[1]
    assert (summary.finish, summary.usage.output_text) == ("length", 3)


def test_the_stop_token_is_not_part_of_the_reply(llama: Checkpoint) -> None:
    conversation = conversation_of("llama")
    generator = make_generator(llama)
    _, segments = generator.template.prompt(request(conversation), 2000)
    with generator.model.lease("x") as cache:
        first = int(list(generator.model.prefill(cache, segments, 0))[-1].argmax())
    stopping = TextGenerator(replace(llama, stop_tokens=frozenset({first})), 10, 1 << 30)
    text, summary = generate(stopping, conversation)
    assert (text, summary.finish, summary.usage.output_text) == ("", "stop", 0)
