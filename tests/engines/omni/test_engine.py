"""The engine as a session uses it: the contract, readers of all speeds, and what breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, Part, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.batch_scheduler import Rounds
from echosight.engines.omni.engine import OmniEngine
from echosight.engines.omni.load import load
from echosight.errors import EngineFailure
from echosight.media import Transcript
from echosight.options import GenerateOptions
from tests.engines.omni.speech import heard, photo, sound
from tests.fakes import ScriptedSTT

SHORT = GenerateOptions(max_output_tokens=6)
PACKET = 640


@pytest.fixture
async def engine(folders: dict[str, Path], kind: str) -> AsyncIterator[OmniEngine]:
    engine = load(str(folders[kind]), device="cpu", capacity=2, context=1024, seed=5)
    await engine.start()
    model = engine._stage.model
    model.text_ends = model.codec_ends = frozenset()
    model.limits = type(model.limits)(context=1024, answers=2, frames=40)
    yield engine
    assert not len(model.thinking) and not len(model.talking)
    await engine.close()


async def speak(engine: OmniEngine, conversation: Conversation, *parts: Part, seconds: float = 2.5) -> None:
    """The user says and shows something, packet by packet."""
    conversation.pending_turn = UserTurn()
    pcm = sound(seconds)
    for start in range(0, len(pcm), PACKET):
        await engine.prefill(conversation, conversation.pending_turn.add(AudioPart(pcm[start : start + PACKET])))
    for part in parts:
        await engine.prefill(conversation, conversation.pending_turn.add(part))
    conversation.add(conversation.pending_turn.to_item())
    conversation.pending_turn = None


async def collect(pieces: AsyncGenerator[Chunk]) -> list[Chunk]:
    async with aclosing(pieces):
        return [piece async for piece in pieces]


def text_of(pieces: list[Chunk]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))


async def test_a_talk_of_two_turns(engine: OmniEngine) -> None:
    talk = Conversation(instructions="Be kind.")
    await speak(engine, talk, ImagePart(photo()), TextPart("look"))
    first = await collect(engine.generate(talk, SHORT))
    speech = [piece for piece in first if isinstance(piece, SpeechChunk)]
    words = [word for piece in speech for word in piece.words]
    assert speech and all(len(piece.pcm) % 2 == 0 for piece in speech)
    assert [word.text_end for word in words] == sorted({word.text_end for word in words})
    assert words[-1].text_end <= len(text_of(first))
    match first[-1]:
        case GenerationSummary(usage, "length", made_by):
            assert made_by == (engine.name,)
            assert usage.input_audio > 30 and usage.input_image > 4 and usage.cached > 10
            assert usage.output_text == 6 and usage.output_audio == 40
        case other:
            pytest.fail(f"an answer ended with {other}")
    talk.add(Item("assistant", (AudioPart(None, 24_000, 0, text_of(first)),)))
    await speak(engine, talk)
    second = await collect(engine.generate(talk, SHORT))
    assert (
        isinstance(second[-1], GenerationSummary) and second[-1].usage.cached > usage.input_audio + usage.input_text + 6
    )


async def test_speech_is_computed_while_it_is_heard(engine: OmniEngine) -> None:
    talk = Conversation()
    await speak(engine, talk, seconds=engine._stage.model.window / 100 + 0.5)
    pieces = await collect(engine.generate(talk, GenerateOptions(max_output_tokens=2, speech=False)))
    assert [type(piece) for piece in pieces][-1] is GenerationSummary
    assert not any(isinstance(piece, SpeechChunk) for piece in pieces)
    usage = pieces[-1].usage if isinstance(pieces[-1], GenerationSummary) else None
    assert usage is not None and usage.cached > 0.5 * usage.input_audio


async def test_a_broken_off_answer_leaves_nothing_behind(engine: OmniEngine) -> None:
    talk, other = Conversation(), Conversation()
    for conversation in (talk, other):
        await speak(engine, conversation)
    async with aclosing(engine.generate(talk, SHORT)) as pieces:
        async for piece in pieces:
            if isinstance(piece, SpeechChunk):
                break
    assert not len(engine._stage.model.talking)
    again, fresh = [await collect(engine.generate(each, SHORT)) for each in (talk, other)]
    assert again[:-1] == fresh[:-1]


async def test_a_cancelled_beginning_gives_its_rows_back(engine: OmniEngine) -> None:
    talk = Conversation()
    await speak(engine, talk)
    for passes in range(6):
        task = asyncio.create_task(collect(engine.generate(talk, SHORT)))
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await engine.release(talk.id)
    assert not len(engine._stage.model.thinking)
    assert text_of(await collect(engine.generate(talk, SHORT)))


async def test_answers_at_the_same_time_share_steps_and_stay_apart(engine: OmniEngine) -> None:
    talks = [Conversation(), Conversation()]
    parts: tuple[Part, ...] = (TextPart("one"), ImagePart(photo()))
    for talk, part in zip(talks, parts, strict=True):
        await speak(engine, talk, part)
    alone = [await collect(engine.generate(talk, SHORT)) for talk in talks]
    sizes: list[int] = []
    advance = engine._stage.advance

    def count(answers: Any) -> list[list[Chunk]]:
        sizes.append(len(answers))
        return advance(answers)

    engine._stage.advance = count  # type: ignore[method-assign]
    together = await asyncio.gather(*(collect(engine.generate(talk, SHORT)) for talk in talks))
    assert [text_of(pieces) for pieces in together] == [text_of(pieces) for pieces in alone]
    assert sizes.count(2) > sizes.count(1), "answers took turns instead of sharing steps"


async def test_a_reader_that_stops_holds_back_its_own_answer_only(engine: OmniEngine) -> None:
    slow, quick = Conversation(), Conversation()
    for talk in (slow, quick):
        await speak(engine, talk)
    async with aclosing(engine.generate(slow, SHORT)) as pieces:
        assert isinstance(await anext(pieces), TextChunk)
        await collect(engine.generate(quick, SHORT))
        ahead = engine._rounds._lanes[0].answer
        assert len(ahead.tokens) <= 3 and not ahead.done
        rest = [piece async for piece in pieces]
    assert isinstance(rest[-1], GenerationSummary)


async def test_voices_and_instructions_of_one_answer(engine: OmniEngine) -> None:
    talk = Conversation()
    await speak(engine, talk)
    plain = await collect(engine.generate(talk, SHORT))
    pirate = await collect(engine.generate(talk, GenerateOptions(instructions="Be a pirate.", max_output_tokens=6)))
    assert pirate[:-1] != plain[:-1]
    again = await collect(engine.generate(talk, SHORT))
    assert again[:-1] == plain[:-1], "instructions of one answer outlived it"
    other = await collect(engine.generate(talk, GenerateOptions(voice=engine.voices[1], max_output_tokens=6)))
    assert text_of(other) == text_of(plain) and other[:-1] != plain[:-1]
    unknown = await collect(engine.generate(talk, GenerateOptions(voice="nobody", max_output_tokens=6)))
    assert unknown[:-1] == plain[:-1]
    shouted = await collect(engine.generate(talk, GenerateOptions(voice=engine.voices[1].upper(), max_output_tokens=6)))
    assert shouted[:-1] == other[:-1]


async def test_seeds_repeat_and_temperatures_vary(engine: OmniEngine) -> None:
    talk = Conversation()
    await speak(engine, talk)
    hot = GenerateOptions(temperature=1.5, top_p=0.99, max_output_tokens=20, speech=False)
    once, again = [await collect(engine.generate(talk, hot)) for _ in range(2)]
    cold = await collect(engine.generate(talk, GenerateOptions(max_output_tokens=20, speech=False)))
    assert once[:-1] == again[:-1] and text_of(once) != text_of(cold)


async def test_conversations_beyond_the_capacity_push_out_idle_ones(engine: OmniEngine) -> None:
    talks = [Conversation() for _ in range(3)]
    for talk in talks:
        await speak(engine, talk)
    assert len(engine._stage._memories) == 2
    assert text_of(await collect(engine.generate(talks[0], SHORT))), "what was pushed out is computed again"


async def test_a_failing_model_fails_the_turn_and_not_the_next(engine: OmniEngine) -> None:
    talk = Conversation()
    await speak(engine, talk)
    model = engine._stage.model
    think, calls = model.think, []

    def fail(thoughts: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return think(thoughts)

    model.think = fail  # type: ignore[method-assign]
    with pytest.raises(EngineFailure, match="out of luck"):
        await collect(engine.generate(talk, SHORT))
    assert text_of(await collect(engine.generate(talk, SHORT)))


async def test_a_transcriber_beside_it_writes_what_was_said(folders: dict[str, Path]) -> None:
    stt = ScriptedSTT()
    engine = load(str(folders["qwen2_5_omni"]), device="cpu", capacity=1, context=512, transcriber=stt)
    await engine.start()
    talk = Conversation()
    talk.pending_turn = turn = UserTurn()
    partial = await engine.prefill(talk, turn.add(heard(sound(0.1))))
    assert partial == "3200 bytes"
    assert await engine.finalize_transcript(talk, turn) == Transcript("3200 bytes in all")
    talk.add(turn.to_item())
    talk.pending_turn = None
    assert await engine.finalize_transcript(talk, turn) == Transcript("3200 bytes in all")
    assert not stt.open_streams
    await engine.close()


async def test_rounds_merge_whoever_reads_along() -> None:
    left = {"a": 5, "b": 3}
    rounds_seen: list[list[str]] = []

    async def step(names: Any) -> list[list[Chunk]]:
        await asyncio.sleep(0)
        rounds_seen.append(list(names))
        for name in names:
            left[name] -= 1
        return [[TextChunk(name)] for name in names]

    rounds: Rounds[str] = Rounds(step, lambda name: left[name] == 0)
    running = asyncio.create_task(rounds.run())
    answers = await asyncio.gather(*(collect(rounds.read(name)) for name in left))
    running.cancel()
    assert [len(pieces) for pieces in answers] == [5, 3]
    assert rounds_seen == [["a", "b"]] * 3 + [["a"]] * 2


async def test_closing_ends_what_is_still_read() -> None:
    begun = asyncio.Event()

    async def step(names: Any) -> list[list[Chunk]]:
        begun.set()
        await asyncio.Event().wait()
        return []

    rounds: Rounds[str] = Rounds(step, lambda name: False)
    running = asyncio.create_task(rounds.run())
    reading = asyncio.create_task(collect(rounds.read("a")))
    await begun.wait()
    running.cancel()
    with pytest.raises(EngineFailure, match="closed"):
        await reading
