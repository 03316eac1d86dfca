"""The LLM as a cascade uses it: prefill, replies, failures and loading."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.chat import TransformersLLM, build_generator, make_llm
from echosight.errors import CannotSee, EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines import tiny_local
from tests.engines.llm.transformers.rig import SHORT, WEATHER, conversation_of


@pytest.fixture
async def llm(folders: dict[str, Path]) -> Any:
    llm = TransformersLLM("tiny", lambda: build_generator(str(folders["llama"])), seed=1)
    await llm.start()
    yield llm
    await llm.close()


async def test_an_llm_prefills_replies_and_releases(llm: TransformersLLM) -> None:
    conversation = Conversation(instructions="Answer in one sentence.", pending_turn=UserTurn())
    assert conversation.pending_turn is not None
    conversation.pending_turn.add(AudioPart(bytes(3200)))
    for partial in ("how are", "how are you today and", "how are you today and where"):
        await llm.prefill(conversation, partial)
    conversation.add(conversation.pending_turn.to_item("how are you today and where are we?"))
    conversation.pending_turn = None
    chunks = [chunk async for chunk in llm.generate(conversation, SHORT)]
    assert isinstance(chunks[-1], GenerationSummary)
    assert chunks[-1].usage.cached > 10
    assert any(isinstance(chunk, TextChunk) for chunk in chunks)
    await llm.release(conversation.id)
    again = [chunk async for chunk in llm.generate(conversation, SHORT)]
    assert isinstance(again[-1], GenerationSummary)
    assert again[-1].usage.cached == 0
    assert again[:-1] == chunks[:-1]


async def test_a_model_without_eyes_refuses_images_that_must_be_seen(llm: TransformersLLM) -> None:
    with pytest.raises(CannotSee, match="tiny takes no images"):
        await anext(llm.generate(Conversation(), replace(SHORT, require_images=True)))


async def test_a_closed_reply_stops_within_a_step(llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm._generator.model
    count = 0
    step = model.step

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return step(*args)

    monkeypatch.setattr(model, "step", counted)
    async with aclosing(llm.generate(conversation_of("llama"), replace(SHORT, max_output_tokens=200))) as reply:
        await anext(reply)
        before = count
    assert count <= before + 1


async def test_a_failing_template_fails_one_response_only(
    llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken, pytest.raises(EngineFailure, match="The model failed"):
        broken.setattr(llm._generator.template, "template", "{{ raise_exception('no') }}")
        [chunk async for chunk in llm.generate(conversation_of("llama"), SHORT)]
    assert isinstance([chunk async for chunk in llm.generate(conversation_of("llama"), SHORT)][-1], GenerationSummary)


async def test_a_required_function_is_called(llm: TransformersLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm._generator, "_stop_tokens", frozenset())
    deltas = iter('{"city": "Rome"}}\n</tool_call>')
    monkeypatch.setattr("echosight.engines.llm.transformers.generator._Detokenizer.add", lambda *_: next(deltas, ""))
    choice = {"type": "function", "name": "weather"}
    options = GenerateOptions(max_output_tokens=40, tools=(WEATHER,), tool_choice=choice)
    chunks = [chunk async for chunk in llm.generate(conversation_of("llama"), options)]
    calls = [chunk for chunk in chunks if isinstance(chunk, ToolCallChunk)]
    assert [(call.name, call.arguments) for call in calls] == [("weather", '{"city": "Rome"}')]


async def test_a_failed_load_is_reported_in_one_sentence(tmp_path: Path, folders: dict[str, Path]) -> None:
    def reason(source: Path) -> str:
        with pytest.raises(SetupError) as failure:
            build_generator(str(source))
        assert "\n" not in failure.value.message
        return failure.value.message

    assert "no folder" in reason(tmp_path / "nowhere")
    assert "config.json" in reason(tmp_path)
    bare = tiny_local.write_llama(tmp_path / "bare", None)
    assert "chat template" in reason(bare)
    (tmp_path / "config.json").write_text('{"model_type": "vits"}')
    assert "does not chat" in reason(tmp_path)
    (bare / "model.safetensors").unlink()
    assert "could not be loaded" in reason(bare)
    with pytest.raises(SetupError, match="--model"):
        make_llm(None, Settings(model=None))
