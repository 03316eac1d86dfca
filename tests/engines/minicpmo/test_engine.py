"""MiniCPM-o in processes of its own, with stand-ins for the models that answer with what they were given to read."""

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
from echosight.engines.minicpmo.engine import MODULE, MiniCpmEngine, load, version_of
from echosight.errors import EngineFailure, EngineFull, SetupError
from echosight.media import AudioChunk, ImageFrame
from echosight.options import GenerateOptions
from tests.engines.minicpmo.standin import write_voice

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
    made = MiniCpmEngine("stand-in", [command(version)])
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def pair() -> AsyncIterator[MiniCpmEngine]:
    made = MiniCpmEngine("stand-in", [command("26")] * 2)
    await made.start()
    yield made
    await made.close()


def seconds(count: float) -> AudioPart:
    return AudioPart(bytes(round(32_000 * count)), duration_ms=round(1000 * count))


def picture(width: int) -> ImagePart:
    data = io.BytesIO()
    Image.new("RGB", (width, 8)).save(data, "PNG")
    return ImagePart(ImageFrame(data.getvalue(), "image/png", width, 8))


async def speak(engine: MiniCpmEngine, conversation: Conversation, *parts: Any) -> None:
    """The user says and shows something, piece by piece, and ends the turn."""
    conversation.pending_turn = turn = UserTurn()
    for part in parts:
        await engine.prefill(conversation, turn.add(part))
    conversation.pending_turn = None
    conversation.add(turn.to_item())


async def answer(engine: MiniCpmEngine, conversation: Conversation, options: GenerateOptions = SPOKEN) -> list[str]:
    """What the model has read, after its system prompt; the answer is added to the conversation."""
    text = ""
    async with aclosing(engine.generate(conversation, options)) as pieces:
        async for piece in pieces:
            text += piece.text if isinstance(piece, TextChunk) else ""
    conversation.add(Item("assistant", (TextPart(text.strip()),)))
    # 2.6 is told how to speak as if by the user.
    words = [word for word in text.split() if not word.startswith("s:")]
    return words[4 if "omni" in words[0] else 0 : -2]


async def test_it_reads_while_the_user_speaks(engine: MiniCpmEngine, version: str) -> None:
    conversation = Conversation(instructions="Be kind.")
    conversation.pending_turn = turn = UserTurn()
    for part in (seconds(0.6), picture(5), seconds(0.6), seconds(1.4)):
        await engine.prefill(conversation, turn.add(part))
    seat = engine._seats[0]
    assert seat._bytes == 64_000
    conversation.pending_turn = None
    conversation.add(turn.to_item())
    # The voice is known only now, so all is read again.
    first = await answer(engine, conversation)
    await speak(engine, conversation, seconds(1.2), TextPart("and this?"))
    assert seat._bytes == 32_000
    second = await answer(engine, conversation)
    if version == "26":
        assert first == ["u:Be_kind.", "u:5x8", "u:1.0s", "u:1.0s", "u:0.6s"]
        assert second == [*first, "u:1.0s", "u:and_this?", "u:0.2s"]
    else:
        assert first == ["u:5x8", "u:1.0s", "u:1.0s", "u:0.6s", "last"]
        assert second == [*first, "u:1.0s", "u:and_this?", "u:0.2s", "last"]


async def test_the_voice_is_that_of_the_sample(engine: MiniCpmEngine, version: str) -> None:
    conversation = Conversation(language="zh-CN", items=[Item("user", (TextPart("hello"),))])
    text = "".join([p.text async for p in engine.generate(conversation, SPOKEN) if isinstance(p, TextChunk)])
    role = "u" if version == "26" else "s"
    assert text.split()[:4] == [f"{role}:omni/zh", f"{role}:clone", f"{role}:1.5s", f"{role}:speak"]


async def test_speech_comes_with_the_words_spoken_in_it(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    pieces = [piece async for piece in engine.generate(conversation, SPOKEN)]
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))
    speech = [piece for piece in pieces if isinstance(piece, SpeechChunk)]
    assert "<|" not in text
    words = [word for piece in speech for word in piece.words]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms // 100 for word in words] == [n // 2 for n in range(len(words))]
    assert all(piece.pcm == speech[0].pcm and len(piece.pcm) == 4800 for piece in speech)
    assert pieces[-1] == GenerationSummary(providers=("stand-in",))


async def test_text_alone_needs_no_voice(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    pieces = [piece async for piece in engine.generate(conversation, GenerateOptions(speech=False))]
    assert {type(piece) for piece in pieces} == {TextChunk, GenerationSummary}


async def test_what_was_edited_is_read_anew(engine: MiniCpmEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation, TextPart("one"))
    await answer(engine, conversation)
    cut = replace(conversation.items[-1], parts=(TextPart("half of it"),))
    conversation.update(cut)
    await speak(engine, conversation, TextPart("two"))
    read = await answer(engine, conversation)
    assert [word for word in read if word != "last"] == ["u:one", "a:..assistanthalf_of_it.", "u:two"]


async def test_an_answer_that_nobody_reads_stops(engine: MiniCpmEngine) -> None:
    conversation = Conversation(items=[Item("user", (TextPart(" ".join("abcdefghij") * 9),))])
    long = Conversation(items=[Item("user", tuple(TextPart(c) for c in "abcdefghijklmnopqrstuvwxyz"))])
    async with aclosing(engine.generate(long, SPOKEN)) as pieces:
        await anext(pieces)
    read = ""
    async for piece in engine.generate(conversation, SPOKEN):
        read += piece.text if isinstance(piece, TextChunk) else ""
    made = next(int(word[5:]) for word in read.split() if word.startswith("made:"))
    assert made <= 1 + minicpmo.AHEAD


async def test_without_a_sample_the_newer_model_speaks_with_its_own_voice(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    write_voice(tmp_path / "assets" / "system_ref_audio.wav")
    engine = MiniCpmEngine("stand-in", [command("45", str(tmp_path))])
    await engine.start()
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    pieces = [piece async for piece in engine.generate(conversation, GenerateOptions())]
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))
    assert "s:1.5s s:speak" in text
    assert any(isinstance(piece, SpeechChunk) for piece in pieces)
    await engine.close()


async def test_the_limit_is_told() -> None:
    engine = MiniCpmEngine("stand-in", [command("26")])
    await engine.start()
    conversation = Conversation(items=[Item("user", (TextPart("hello"),))])
    pieces = [p async for p in engine.generate(conversation, replace(SPOKEN, max_output_tokens=2))]
    assert pieces[-1] == GenerationSummary(finish="length", providers=("stand-in",))
    await engine.close()


async def test_conversations_have_a_process_each(pair: MiniCpmEngine) -> None:
    first, second, third = (Conversation(id=name) for name in "abc")
    for conversation in (first, second):
        await speak(pair, conversation, TextPart(conversation.id))
    assert "u:b" not in await answer(pair, first)
    async with aclosing(pair.generate(second, SPOKEN)) as busy:
        await anext(busy)
        await speak(pair, third, TextPart("c"))
        assert [word for word in await answer(pair, third) if len(word) == 3] == ["u:c"]
        async with aclosing(pair.generate(third, SPOKEN)) as also_busy:
            await anext(also_busy)
            with pytest.raises(EngineFull):
                await answer(pair, first)
    await pair.release("c")
    assert "u:a" in await answer(pair, first)


async def test_a_model_that_breaks_fails_the_turn_only(engine: MiniCpmEngine, version: str) -> None:
    if version == "45":
        # Without a voice, neither of its own.
        broken: tuple[Conversation, GenerateOptions] = (
            Conversation(items=[Item("user", (TextPart("hello"),))]),
            GenerateOptions(),
        )
    else:
        broken = (Conversation(items=[Item("user", (TextPart("crash"),))]), SPOKEN)
    with pytest.raises(EngineFailure, match=r"CUDA error|voice to imitate"):
        await answer(engine, *broken)
    assert "u:hello" in await answer(engine, Conversation(items=[Item("user", (TextPart("hello"),))]))


async def test_a_process_that_died_begins_again(engine: MiniCpmEngine) -> None:
    conversation = Conversation()
    await speak(engine, conversation, TextPart("one"))
    await answer(engine, conversation)
    process = engine._seats[0].process
    assert process.pid is not None
    channel = await process.open()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineFailure):
        await channel.receive()
    await speak(engine, conversation, TextPart("two"))
    read = await answer(engine, conversation)
    assert "u:one" in read
    assert "u:two" in read


def test_which_version_it_is(tmp_path: Path) -> None:
    assert version_of("openbmb/MiniCPM-o-2_6") == "2.6"
    assert version_of("openbmb/MiniCPM-o-4_5-awq") == "4.5"
    (tmp_path / "config.json").write_text('{"version": "4.5"}')
    assert version_of(str(tmp_path)) == "4.5"
    (tmp_path / "config.json").write_text('{"version": 2.6}')
    assert version_of(str(tmp_path)) == "2.6"


def test_what_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="pip install uv"):
        load("openbmb/MiniCPM-o-2_6")
    uv = tmp_path / "uv"
    uv.touch(mode=0o755)
    with pytest.raises(SetupError, match="CUDA GPU with 19 GB"):
        load("openbmb/MiniCPM-o-2_6")
    monkeypatch.setattr(minicpmo, "free_mib", lambda: 50_000)
    engine = load("openbmb/MiniCPM-o-4_5")
    assert engine.capacity == 2
    assert "transformers==4.51.0" in engine._seats[0].process._command
