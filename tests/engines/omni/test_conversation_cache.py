"""Edits of a conversation reach the caches, and nothing else changes them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from echosight.conversation import ImagePart, Item, TextPart, pcm_part
from echosight.engines.omni.conversation_cache import ConversationCache, ConversationSnapshot
from echosight.engines.omni.model_runner import ModelRunner
from echosight.errors import EngineFailure
from tests.engines.omni.speech import (
    CLOSE,
    FIRST,
    SECOND,
    SYSTEM,
    assistant,
    first_logits,
    image_frame,
    reply_to,
    snapshot,
    sound,
    spoken_request,
    user,
)


def test_edits_of_the_conversation_reach_the_caches(runner: ModelRunner, model: Any) -> None:
    reply = reply_to(runner, snapshot(FIRST), spoken_request(model))
    cache = runner._caches["talk"]
    edits = {
        "deleted": snapshot(SECOND),
        "truncated": snapshot(FIRST, assistant("reply", reply.text[: len(reply.text) // 2]), SECOND),
        "inserted": snapshot(user("new", TextPart("first")), FIRST, SECOND),
        "new version": snapshot(replace(FIRST, version=3, parts=(TextPart("other"),)), SECOND),
        "new instructions": snapshot(FIRST, SECOND, system="Be brief."),
    }
    for name, seen in edits.items():
        assert (first_logits(cache, seen) - first_logits(ConversationCache(model, 3000), seen)).abs().max() <= CLOSE, (
            name
        )


def error_of(cache: ConversationCache, model: Any, seen: ConversationSnapshot) -> float:
    """The largest difference between logits on a cache and on a fresh one."""
    fresh = ConversationCache(model, 3000)
    return float((first_logits(cache, seen) - first_logits(fresh, seen)).abs().max())


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_edits_leaves_exact_caches(runner: ModelRunner, model: Any, seed: int) -> None:
    rng, system = random.Random(seed), SYSTEM
    items: list[Item] = []
    for step in range(24):
        match rng.choice(["turn", "turn", "reply", "reply", "cancel", "delete", "edit", "insert", "image", "system"]):
            case "turn":
                pcm = sound(rng.choice([0.4, 2.3]), step)
                turn = user(f"u{step}", pcm_part(pcm), TextPart(f"words {step}"))
                half = user(turn.id, pcm_part(pcm[: len(pcm) // 4 * 2]))
                runner.prefill(snapshot(*items, turn=half, system=system))
                items.append(turn)
            case "reply":
                request = replace(spoken_request(model, 3), speaker=None)
                reply = reply_to(runner, snapshot(*items, system=system), request)
                # Never the whole reply: the tokenizer may split its text into other tokens than the sampled ones.
                items.append(assistant(f"a{step}", f"{reply.text[:1]} at {step}"))
            case "cancel":
                generation = runner.start(snapshot(*items, system=system), spoken_request(model))
                runner.step([generation])
                runner.finish("talk", [generation])
            case "system" if rng.random() < 0.3:
                system = f"You are number {step}."
            case edit:
                apply_edit(edit, items, step, rng)
        seen = snapshot(*items, system=system)
        cache = runner._caches.get("talk")
        if cache is not None and rng.random() < 0.5:
            assert error_of(cache, model, seen) <= CLOSE, step
    assert error_of(runner._caches["talk"], model, seen) <= CLOSE


def apply_edit(edit: str, items: list[Item], step: int, rng: random.Random) -> None:
    """Delete, edit or insert an item at random, or append an image."""
    match edit:
        case "delete" if items:
            items.pop(rng.randrange(len(items)))
        case "edit" if items:
            index = rng.randrange(len(items))
            old = items[index]
            items[index] = replace(old, version=old.version + 1, parts=(TextPart(f"edit {step}"),))
        case "insert":
            items.insert(rng.randint(0, len(items)), user(f"i{step}", TextPart(f"insert {step}")))
        case "image":
            items.append(user(f"p{step}", ImagePart(image_frame(step))))


def test_a_late_transcript_keeps_the_cache(runner: ModelRunner, model: Any) -> None:
    with torch.inference_mode():
        runner.prefill(snapshot(turn=FIRST))
    assert FIRST.audio is not None
    late = replace(FIRST, version=1, parts=(replace(FIRST.audio, transcript="look there"), *FIRST.parts[1:]))
    cache = runner._caches["talk"]
    first_logits(cache, snapshot(late))
    computed, cached_item = cache.context.computed, cache._cached[0]
    first_logits(cache, snapshot(replace(late, version=2), SECOND))
    assert cache._cached[0] is cached_item and cache.context.computed > computed


def test_a_full_context_drops_the_oldest_whole_turns(model: Any) -> None:
    turns = [
        part for n in range(6) for part in (user(f"u{n}", TextPart(f"say {n} " * 8)), assistant(f"a{n}", f"well {n}"))
    ]
    last = user("last", TextPart("and then"))
    cache = ConversationCache(model, 400)
    logits = first_logits(cache, snapshot(*turns, last))
    assert cache._dropped_ids and turns[-2].id not in cache._dropped_ids
    remaining = [item for item in turns if item.id not in cache._dropped_ids]
    assert remaining[0].role == "user"
    assert (logits - first_logits(ConversationCache(model, 3000), snapshot(*remaining, last))).abs().max() <= CLOSE
    computed = cache.context.computed
    first_logits(cache, snapshot(*turns, last, assistant("x", "so"), user("y", TextPart("go on"))))
    assert computed < cache.context.computed <= 400, "a conversation that still fitted was computed again"


def test_a_turn_longer_than_the_context_fails(model: Any) -> None:
    with pytest.raises(EngineFailure, match="longer than"), torch.inference_mode():
        ConversationCache(model, 64).begin_reply(snapshot(user("one", TextPart("word " * 200))), None)


def test_a_failed_step_drops_the_caches(runner: ModelRunner, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = first_logits(ConversationCache(model, 3000), snapshot(FIRST))

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "_talker_forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            runner.start(snapshot(FIRST), spoken_request(model))
    assert "talk" not in runner._caches
    runner.finish("talk", [runner.start(snapshot(FIRST), spoken_request(model))])
    assert (first_logits(runner._caches["talk"], snapshot(FIRST)) - expected).abs().max() <= CLOSE
