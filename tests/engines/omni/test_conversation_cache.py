"""Edits of a conversation reach the caches, and nothing else changes them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from echosight.conversation import ImagePart, Item, TextPart
from echosight.engines.omni.conversation_cache import Memory
from echosight.engines.omni.model_runner import Stage
from echosight.errors import EngineFailure
from tests.engines.omni.speech import (
    CLOSE,
    FIRST,
    SECOND,
    SYSTEM,
    ask,
    first_logits,
    heard,
    photo,
    sound,
    spoken,
    user,
    view,
    wish,
)


def test_edits_of_the_conversation_reach_the_caches(stage: Stage, model: Any) -> None:
    reply = ask(stage, view(FIRST), wish(model))
    memory = stage._memories["talk"]
    edits = {
        "deleted": view(SECOND),
        "truncated": view(FIRST, spoken("reply", reply.text[: len(reply.text) // 2]), SECOND),
        "inserted": view(user("new", TextPart("first")), FIRST, SECOND),
        "new version": view(replace(FIRST, version=3, parts=(TextPart("other"),)), SECOND),
        "new instructions": view(FIRST, SECOND, system="Be brief."),
    }
    for name, seen in edits.items():
        assert (first_logits(memory, seen) - first_logits(Memory(model, 3000), seen)).abs().max() <= CLOSE, name


@pytest.mark.parametrize("seed", range(3))
def test_any_course_of_a_talk_leaves_the_right_caches(stage: Stage, model: Any, seed: int) -> None:
    dice, system = random.Random(seed), SYSTEM
    items: list[Item] = []
    for step in range(24):
        match dice.choice(["turn", "turn", "ask", "ask", "cut", "delete", "edit", "insert", "shown", "system"]):
            case "turn":
                pcm = sound(dice.choice([0.4, 2.3]), step)
                turn = user(f"u{step}", heard(pcm), TextPart(f"words {step}"))
                with torch.inference_mode():
                    stage.follow(view(*items, turn=user(turn.id, heard(pcm[: len(pcm) // 4 * 2])), system=system))
                items.append(turn)
            case "ask":
                said = ask(stage, view(*items, system=system), replace(wish(model, 3), speaker=None))
                # Never the whole reply: its text may have other tokens than those that were chosen for it.
                items.append(spoken(f"a{step}", f"{said.text[:1]} at {step}"))
            case "cut":
                answer = stage.begin(view(*items, system=system), wish(model))
                stage.advance([answer])
                stage.end("talk", [answer])
            case "delete" if items:
                items.pop(dice.randrange(len(items)))
            case "edit" if items:
                at = dice.randrange(len(items))
                items[at] = replace(items[at], version=items[at].version + 1, parts=(TextPart(f"edit {step}"),))
            case "insert":
                items.insert(dice.randint(0, len(items)), user(f"i{step}", TextPart(f"insert {step}")))
            case "shown":
                items.append(user(f"p{step}", ImagePart(photo(step))))
            case "system" if dice.random() < 0.3:
                system = f"You are number {step}."
        seen = view(*items, system=system)
        memory = stage._memories.get("talk")
        if memory is not None and dice.random() < 0.5:
            assert (first_logits(memory, seen) - first_logits(Memory(model, 3000), seen)).abs().max() <= CLOSE, step
    memory = stage._memories["talk"]
    assert (first_logits(memory, seen) - first_logits(Memory(model, 3000), seen)).abs().max() <= CLOSE


def test_a_transcript_that_comes_late_changes_nothing(stage: Stage, model: Any) -> None:
    with torch.inference_mode():
        stage.follow(view(turn=FIRST))
    assert FIRST.audio is not None
    late = replace(FIRST, version=1, parts=(replace(FIRST.audio, transcript="look there"), *FIRST.parts[1:]))
    memory = stage._memories["talk"]
    first_logits(memory, view(late))
    computed, kept = memory.context.computed, memory._kept[0]
    first_logits(memory, view(replace(late, version=2), SECOND))
    assert memory._kept[0] is kept and memory.context.computed > computed


def test_a_full_context_forgets_the_oldest_whole_turns(model: Any) -> None:
    turns = [
        part for n in range(6) for part in (user(f"u{n}", TextPart(f"say {n} " * 8)), spoken(f"a{n}", f"well {n}"))
    ]
    last = user("last", TextPart("and then"))
    memory = Memory(model, 400)
    logits = first_logits(memory, view(*turns, last))
    assert memory._forgotten and turns[-2].id not in memory._forgotten
    kept = [item for item in turns if item.id not in memory._forgotten]
    assert kept[0].role == "user"
    assert (logits - first_logits(Memory(model, 3000), view(*kept, last))).abs().max() <= CLOSE
    computed = memory.context.computed
    first_logits(memory, view(*turns, last, spoken("x", "so"), user("y", TextPart("go on"))))
    assert computed < memory.context.computed <= 400, "a conversation that had room was computed anew"


def test_a_turn_longer_than_the_context_fails(model: Any) -> None:
    with pytest.raises(EngineFailure, match="longer than"), torch.inference_mode():
        Memory(model, 64).prepare_reply(view(user("one", TextPart("word " * 200))), None)


def test_caches_that_broke_off_are_given_up(stage: Stage, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = first_logits(Memory(model, 3000), view(FIRST))

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "_talker_forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            stage.begin(view(FIRST), wish(model))
    assert "talk" not in stage._memories
    stage.end("talk", [stage.begin(view(FIRST), wish(model))])
    assert (first_logits(stage._memories["talk"], view(FIRST)) - expected).abs().max() <= CLOSE
