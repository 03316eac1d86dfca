"""MiniCPM-o in processes of its own, with stand-ins for the models whose reply lists the inputs that they have read."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.minicpmo import engine as minicpmo
from echosight.engines.minicpmo.engine import MODULE, MiniCpmEngine
from echosight.errors import EngineFailure, EngineFull
from echosight.media import AudioChunk, ImageFrame, Transcript
from echosight.options import GenerateOptions
from tests.engines.minicpmo.standin import write_voice
from tests.fakes import ScriptedSTT

SAMPLE = AudioChunk(bytes(24_000), 8_000)
"""A second and a half of a voice."""
SPOKEN = GenerateOptions(voice_sample=SAMPLE)


def command(version: str, source: str = ".") -> tuple[str, ...]:
    return (sys.executable, "-m", MODULE, source, f"tests.engines.minicpmo.standin:load{version}")


@pytest.fixture(params=["26", "45"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def engine(version: str) -> AsyncIterator[MiniCpmEngine]:
    engine = MiniCpmEngine("stand-in", [command(version)])
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def two_processes() -> AsyncIterator[MiniCpmEngine]:
    engine = MiniCpmEngine("stand-in", [command("26")] * 2)
    await engine.start()
    yield engine
    await engine.close()


def silence(seconds: float) -> AudioPart:
    return AudioPart(bytes(round(32_000 * seconds)), duration_ms=round(1000 * seconds))


def image_part(width: int) -> ImagePart:
    data = io.BytesIO()
    Image.new("RGB", (width, 8)).save(data, "PNG")
    return ImagePart(ImageFrame(data.getvalue(), "image/png", width, 8))


async def speak(engine: MiniCpmEngine, conversation: Conversation, *parts: Any) -> None:
    """The user's whole turn, part by part."""
    conversation.pending_turn = turn = UserTurn()
    for part in parts:
        await engine.prefill(conversation, turn.add(part))
    conversation.pending_turn = None
    conversation.add(turn.to_item())


async def reply(engine: MiniCpmEngine, conversation: Conversation, options: GenerateOptions = SPOKEN) -> list[str]:
    """The inputs that the model has read, behind its system prompt; the reply is added to the conversation."""
    text = ""
    async with aclosing(engine.generate(conversation, options)) as chunks:
        async for chunk in chunks:
            text += chunk.text if isinstance(chunk, TextChunk) else ""
    conversation.add(Item("assistant", (TextPart(text.strip()),)))
    # 2.6 takes its system prompt as a user message.
    words = [word for word in text.split() if not word.startswith("s:")]
    return words[4 if "omni" in words[0] else 0 : -2]


async def test_it_reads_while_the_user_speaks(engine: MiniCpmEngine, version: str) -> None:
    conversation = Conversation(instructions="Be kind.")
    conversation.pending_turn = turn = UserTurn()
    for part in (silence(0.6), image_part(5), silence(0.6), silence(1.4)):
        await engine.prefill(conversation, turn.add(part))
    cache = engine._caches[0]
    assert cache._turn_bytes == 64_000
    conversation.pending_turn = None
    conversation.add(turn.to_item())
    # The voice sample comes with the request, so the model begins again.
    first = await reply(engine, conversation)
    await speak(engine, conversation, silence(1.2), TextPart("and this?"))
    assert cache._turn_bytes == 32_000
    second = await reply(engine, conversation)
    if version == "26":
        assert first == ["u:Be_kind.", "u:5x8", "u:1.0s", "u:1.0s", "u:0.6s"]
        assert second == [*first, "u:1.0s", "u:and_this?", "u:0.2s"]
    else:
        assert first == ["u:5x8", "u:1.0s", "u:1.0s", "u:0.6s", "last"]
        assert second == [*first, "u:1.0s", "u:and_this?", "u:0.2s", "last"]


async def test_the_voice_sample_is_part_of_the_system_prompt(engine: MiniCpmEngine, version: str) -> None:
    conversation = Conversation(language="zh-CN", items=[Item("user", (TextPart("hello"),))])
    text = "".join([p.text async for p in engine.generate(conversation, SPOKEN) if isinstance(p, TextChunk)])
    role = "u" if version == "26" else "s"
    assert text.split()[:4] == [f"{role}:omni/zh", f"{role}:clone", f"{role}:1.5s", f"{role}:speak"]


async def test_speech_carries_the_times_of_its_words(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    chunks = [chunk async for chunk in engine.generate(conversation, SPOKEN)]
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    speech = [chunk for chunk in chunks if isinstance(chunk, SpeechChunk)]
    assert "<|" not in text
    words = [word for chunk in speech for word in chunk.words]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms // 100 for word in words] == [n // 2 for n in range(len(words))]
    assert all(chunk.pcm == speech[0].pcm and len(chunk.pcm) == 4800 for chunk in speech)
    assert chunks[-1] == GenerationSummary(providers=("stand-in",))


async def test_text_alone_needs_no_voice(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    chunks = [chunk async for chunk in engine.generate(conversation, GenerateOptions(speech=False))]
    assert {type(chunk) for chunk in chunks} == {TextChunk, GenerationSummary}


async def test_an_edited_conversation_is_read_again(engine: MiniCpmEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation, TextPart("one"))
    await reply(engine, conversation)
    cut = replace(conversation.items[-1], parts=(TextPart("half of it"),))
    conversation.update(cut)
    await speak(engine, conversation, TextPart("two"))
    read = await reply(engine, conversation)
    assert [word for word in read if word != "last"] == ["u:one", "a:..assistanthalf_of_it.", "u:two"]


async def test_a_closed_reply_stops_the_model(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart(" ".join("abcdefghij") * 9),))])
    long = Conversation(items=[Item("user", tuple(TextPart(c) for c in "abcdefghijklmnopqrstuvwxyz"))])
    async with aclosing(engine.generate(long, SPOKEN)) as chunks:
        await anext(chunks)
    read = ""
    async for chunk in engine.generate(conversation, SPOKEN):
        read += chunk.text if isinstance(chunk, TextChunk) else ""
    steps = next(int(word[6:]) for word in read.split() if word.startswith("steps:"))
    assert steps <= 1 + minicpmo.MAX_CHUNKS_AHEAD


async def test_without_a_sample_4_5_speaks_with_its_own_voice(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    write_voice(tmp_path / "assets" / "system_ref_audio.wav")
    engine = MiniCpmEngine("stand-in", [command("45", str(tmp_path))])
    await engine.start()
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    chunks = [chunk async for chunk in engine.generate(conversation, GenerateOptions())]
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    assert "s:1.5s s:speak" in text
    assert any(isinstance(chunk, SpeechChunk) for chunk in chunks)
    await engine.close()


async def test_the_token_limit_is_reported() -> None:
    engine = MiniCpmEngine("stand-in", [command("26")])
    await engine.start()
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    chunks = [chunk async for chunk in engine.generate(conversation, replace(SPOKEN, max_output_tokens=2))]
    assert chunks[-1] == GenerationSummary(finish="length", providers=("stand-in",))
    await engine.close()


async def test_each_conversation_has_its_own_process(two_processes: MiniCpmEngine) -> None:
    first, second, third = (Conversation(id=name) for name in "abc")
    for conversation in (first, second):
        await speak(two_processes, conversation, TextPart(conversation.id))
    assert "u:b" not in await reply(two_processes, first)
    async with aclosing(two_processes.generate(second, SPOKEN)) as busy:
        await anext(busy)
        await speak(two_processes, third, TextPart("c"))
        assert [word for word in await reply(two_processes, third) if len(word) == 3] == ["u:c"]
        async with aclosing(two_processes.generate(third, SPOKEN)) as also_busy:
            await anext(also_busy)
            with pytest.raises(EngineFull):
                await reply(two_processes, first)
    await two_processes.release("c")
    assert "u:a" in await reply(two_processes, first)


async def test_an_stt_transcribes_each_turn_and_forgets_it() -> None:
    stt = ScriptedSTT()
    engine = MiniCpmEngine("stand-in", [command("26")], stt=stt)
    await engine.start()
    conversation = Conversation(pending_turn=UserTurn())
    turn = conversation.pending_turn
    assert turn is not None
    assert await engine.prefill(conversation, turn.add(silence(0.5))) == "16000 bytes"
    conversation.add(turn.to_item())
    conversation.pending_turn = None
    assert await engine.finalize_transcript(conversation, turn) == Transcript("16000 bytes in all")
    assert not stt.open_streams, "a turn that is over was not forgotten"
    unheard = UserTurn()
    unheard.add(silence(0.25))
    assert await engine.finalize_transcript(conversation, unheard) == Transcript("8000 bytes in all")
    conversation.pending_turn = UserTurn()
    await engine.prefill(conversation, conversation.pending_turn.add(silence(0.1)))
    await engine.release(conversation.id)
    assert not stt.open_streams, "a conversation that is over was not forgotten"
    await engine.close()


async def test_a_failing_model_fails_one_response_only(engine: MiniCpmEngine, version: str) -> None:
    if version == "45":
        # Neither the request nor the checkpoint has a voice sample.
        broken: tuple[Conversation, GenerateOptions] = (
            Conversation(items=[Item("user", (TextPart("hello"),))]),
            GenerateOptions(),
        )
    else:
        broken = (Conversation(items=[Item("user", (TextPart("crash"),))]), SPOKEN)
    with pytest.raises(EngineFailure, match=r"CUDA error|voice to imitate"):
        await reply(engine, *broken)
    assert "u:hello" in await reply(engine, Conversation(items=[Item("user", (TextPart("hello"),))]))


async def test_a_restarted_process_reads_the_conversation_again(engine: MiniCpmEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation, TextPart("one"))
    await reply(engine, conversation)
    process = engine._caches[0].process
    assert process.pid is not None
    channel = await process.open()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineFailure):
        await channel.receive()
    await speak(engine, conversation, TextPart("two"))
    read = await reply(engine, conversation)
    assert "u:one" in read
    assert "u:two" in read
