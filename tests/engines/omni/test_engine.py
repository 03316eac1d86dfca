"""The engine as a session uses it: the contract, slow and fast readers, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, Part, TextPart, UserTurn, pcm_part
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.batch_scheduler import BatchScheduler
from echosight.engines.omni.engine import OmniEngine
from echosight.engines.omni.load import load
from echosight.errors import EngineFailure
from echosight.media import Transcript
from echosight.options import GenerateOptions
from tests.engines.omni.speech import image_frame, sound
from tests.fakes import ScriptedSTT

SHORT = GenerateOptions(max_output_tokens=6)
PACKET = 640


@pytest.fixture
async def engine(folders: dict[str, Path], model_type: str) -> AsyncIterator[OmniEngine]:
    engine = load(str(folders[model_type]), device="cpu", capacity=2, context=1024, seed=5)
    await engine.start()
    model = engine._runner.model
    model.text_stop_tokens = model.codec_stop_tokens = frozenset()
    model.limits = type(model.limits)(context_tokens=1024, batch_size=2, speech_frames=40)
    yield engine
    assert not len(model.thinker_batch) and not len(model.talker_batch)
    await engine.close()


async def speak(engine: OmniEngine, conversation: Conversation, *parts: Part, seconds: float = 2.5) -> None:
    """The user's whole turn, packet by packet."""
    conversation.pending_turn = UserTurn()
    pcm = sound(seconds)
    for start in range(0, len(pcm), PACKET):
        await engine.prefill(conversation, conversation.pending_turn.add(AudioPart(pcm[start : start + PACKET])))
    for part in parts:
        await engine.prefill(conversation, conversation.pending_turn.add(part))
    conversation.add(conversation.pending_turn.to_item())
    conversation.pending_turn = None


async def collect(chunks: AsyncGenerator[Chunk]) -> list[Chunk]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


async def test_a_conversation_of_two_turns(engine: OmniEngine) -> None:
    conversation = Conversation(instructions="Be kind.")
    await speak(engine, conversation, ImagePart(image_frame()), TextPart("look"))
    first = await collect(engine.generate(conversation, SHORT))
    speech = [chunk for chunk in first if isinstance(chunk, SpeechChunk)]
    words = [word for chunk in speech for word in chunk.words]
    assert speech and all(len(chunk.pcm) % 2 == 0 for chunk in speech)
    assert [word.text_end for word in words] == sorted({word.text_end for word in words})
    assert words[-1].text_end <= len(text_of(first))
    match first[-1]:
        case GenerationSummary(usage, "length", providers):
            assert providers == (engine.name,)
            assert usage.input_audio > 30 and usage.input_image > 4 and usage.cached > 10
            assert usage.output_text == 6 and usage.output_audio == 40
        case other:
            pytest.fail(f"a reply ended with {other}")
    conversation.add(Item("assistant", (AudioPart(None, 24_000, 0, text_of(first)),)))
    await speak(engine, conversation)
    second = await collect(engine.generate(conversation, SHORT))
    assert (
        isinstance(second[-1], GenerationSummary) and second[-1].usage.cached > usage.input_audio + usage.input_text + 6
    )


async def test_speech_is_prefilled_while_the_user_speaks(engine: OmniEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation, seconds=engine._runner.model.encoders.window / 100 + 0.5)
    chunks = await collect(engine.generate(conversation, GenerateOptions(max_output_tokens=2, speech=False)))
    assert [type(chunk) for chunk in chunks][-1] is GenerationSummary
    assert not any(isinstance(chunk, SpeechChunk) for chunk in chunks)
    usage = chunks[-1].usage if isinstance(chunks[-1], GenerationSummary) else None
    assert usage is not None and usage.cached > 0.5 * usage.input_audio


async def test_a_closed_reply_leaves_nothing_in_the_caches(engine: OmniEngine) -> None:
    conversation, other = Conversation(), Conversation()
    for each in (conversation, other):
        await speak(engine, each)
    async with aclosing(engine.generate(conversation, SHORT)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, SpeechChunk):
                break
    assert not len(engine._runner.model.talker_batch)
    again, fresh = [await collect(engine.generate(each, SHORT)) for each in (conversation, other)]
    assert again[:-1] == fresh[:-1]


async def test_a_cancelled_start_removes_its_rows(engine: OmniEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation)
    for passes in range(6):
        task = asyncio.create_task(collect(engine.generate(conversation, SHORT)))
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await engine.release(conversation.id)
    assert not len(engine._runner.model.thinker_batch)
    assert text_of(await collect(engine.generate(conversation, SHORT)))


async def test_concurrent_replies_share_steps_and_do_not_mix(engine: OmniEngine) -> None:
    conversations = [Conversation(), Conversation()]
    parts: tuple[Part, ...] = (TextPart("one"), ImagePart(image_frame()))
    for conversation, part in zip(conversations, parts, strict=True):
        await speak(engine, conversation, part)
    alone = [await collect(engine.generate(conversation, SHORT)) for conversation in conversations]
    sizes: list[int] = []
    step = engine._runner.step

    def count(generations: Any) -> list[list[Chunk]]:
        sizes.append(len(generations))
        return step(generations)

    engine._runner.step = count  # type: ignore[method-assign]
    together = await asyncio.gather(*(collect(engine.generate(conversation, SHORT)) for conversation in conversations))
    assert [text_of(chunks) for chunks in together] == [text_of(chunks) for chunks in alone]
    assert sizes.count(2) > sizes.count(1), "replies took turns instead of sharing steps"


async def test_a_slow_reader_delays_only_its_own_reply(engine: OmniEngine) -> None:
    slow, fast = Conversation(), Conversation()
    for conversation in (slow, fast):
        await speak(engine, conversation)
    async with aclosing(engine.generate(slow, SHORT)) as chunks:
        assert isinstance(await anext(chunks), TextChunk)
        await collect(engine.generate(fast, SHORT))
        waiting = engine._scheduler._slots[0].request
        assert len(waiting.tokens) <= 3 and not waiting.done
        rest = [chunk async for chunk in chunks]
    assert isinstance(rest[-1], GenerationSummary)


async def test_voice_and_instructions_apply_to_one_reply(engine: OmniEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation)
    plain = await collect(engine.generate(conversation, SHORT))
    pirate = await collect(
        engine.generate(conversation, GenerateOptions(instructions="Be a pirate.", max_output_tokens=6))
    )
    assert pirate[:-1] != plain[:-1]
    again = await collect(engine.generate(conversation, SHORT))
    assert again[:-1] == plain[:-1], "instructions of one reply affected the next"
    other = await collect(engine.generate(conversation, GenerateOptions(voice=engine.voices[1], max_output_tokens=6)))
    assert text_of(other) == text_of(plain) and other[:-1] != plain[:-1]
    unknown = await collect(engine.generate(conversation, GenerateOptions(voice="nobody", max_output_tokens=6)))
    assert unknown[:-1] == plain[:-1]
    upper_case = await collect(
        engine.generate(conversation, GenerateOptions(voice=engine.voices[1].upper(), max_output_tokens=6))
    )
    assert upper_case[:-1] == other[:-1]


async def test_seeds_repeat_and_temperatures_vary(engine: OmniEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation)
    hot = GenerateOptions(temperature=1.5, top_p=0.99, max_output_tokens=20, speech=False)
    once, again = [await collect(engine.generate(conversation, hot)) for _ in range(2)]
    cold = await collect(engine.generate(conversation, GenerateOptions(max_output_tokens=20, speech=False)))
    assert once[:-1] == again[:-1] and text_of(once) != text_of(cold)


async def test_conversations_beyond_the_capacity_evict_idle_ones(engine: OmniEngine) -> None:
    conversations = [Conversation() for _ in range(3)]
    for conversation in conversations:
        await speak(engine, conversation)
    assert len(engine._runner._caches) == 2
    assert text_of(await collect(engine.generate(conversations[0], SHORT))), "an evicted conversation is computed again"


async def test_a_failing_model_fails_one_response_only(engine: OmniEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation)
    model = engine._runner.model
    step_thinker, calls = model.step_thinker, []

    def fail(states: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return step_thinker(states)

    model.step_thinker = fail  # type: ignore[method-assign]
    with pytest.raises(EngineFailure, match="out of luck"):
        await collect(engine.generate(conversation, SHORT))
    assert text_of(await collect(engine.generate(conversation, SHORT)))


async def test_an_stt_transcribes_each_turn_and_forgets_it(folders: dict[str, Path]) -> None:
    stt = ScriptedSTT()
    engine = load(str(folders["qwen2_5_omni"]), device="cpu", capacity=1, context=512, stt=stt)
    await engine.start()
    conversation = Conversation()
    conversation.pending_turn = turn = UserTurn()
    partial = await engine.prefill(conversation, turn.add(pcm_part(sound(0.1))))
    assert partial == "3200 bytes"
    assert await engine.finalize_transcript(conversation, turn) == Transcript("3200 bytes in all")
    conversation.add(turn.to_item())
    conversation.pending_turn = None
    assert await engine.finalize_transcript(conversation, turn) == Transcript("3200 bytes in all")
    assert len(stt.streams) == 1 and not stt.open_streams
    await engine.close()


async def test_the_scheduler_merges_the_steps_of_ready_requests() -> None:
    remaining = {"a": 5, "b": 3}
    steps: list[list[str]] = []

    async def step(names: Any) -> list[list[Chunk]]:
        await asyncio.sleep(0)
        steps.append(list(names))
        for name in names:
            remaining[name] -= 1
        return [[TextChunk(name)] for name in names]

    scheduler: BatchScheduler[str] = BatchScheduler(step, lambda name: remaining[name] == 0)
    running = asyncio.create_task(scheduler.run())
    results = await asyncio.gather(*(collect(scheduler.stream(name)) for name in remaining))
    running.cancel()
    assert [len(chunks) for chunks in results] == [5, 3]
    assert steps == [["a", "b"]] * 3 + [["a"]] * 2


async def test_closing_fails_requests_in_progress() -> None:
    started = asyncio.Event()

    async def step(names: Any) -> list[list[Chunk]]:
        started.set()
        await asyncio.Event().wait()
        return []

    scheduler: BatchScheduler[str] = BatchScheduler(step, lambda name: False)
    running = asyncio.create_task(scheduler.run())
    reading = asyncio.create_task(collect(scheduler.stream("a")))
    await started.wait()
    running.cancel()
    with pytest.raises(EngineFailure, match="closed"):
        await reading
