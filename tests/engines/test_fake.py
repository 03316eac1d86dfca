import asyncio
from contextlib import aclosing

import pytest

from echosight.conversation import AudioPart, Conversation, OpenTurn
from echosight.engines import SpeechPiece, Summary, TextPiece
from echosight.engines.fake import STUB_TEXT, STUB_TRANSCRIPT, FakeEngine, StubEngine, spoken
from echosight.engines.load import load
from echosight.errors import EngineFailure
from echosight.options import GenerateOptions
from echosight.settings import Settings


async def test_the_script_is_played_step_by_step_and_remembered() -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeEngine(spoken("one two"), step=gate.acquire)
    conversation = Conversation()
    async with aclosing(engine.generate(conversation, GenerateOptions())) as pieces:
        assert await anext(pieces) == TextPiece("one two")
        pending = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        assert not pending.done()
        gate.release()
        assert isinstance(await pending, SpeechPiece)
    assert (engine.steps, engine.stopped) == (2, 1)
    assert engine.asked == [(conversation, GenerateOptions())]


async def test_it_fails_where_it_is_told_to() -> None:
    engine = FakeEngine(fail_at=1)
    pieces = engine.generate(Conversation(), GenerateOptions())
    await anext(pieces)
    with pytest.raises(EngineFailure):
        await anext(pieces)


async def test_it_knows_what_it_heard() -> None:
    engine = FakeEngine(transcript="yes")
    conversation = Conversation()
    assert await engine.prefill(conversation, AudioPart(b"ab")) == "yes"
    await engine.prefill(conversation, AudioPart(b"cd"))
    assert engine.heard(conversation.id) == b"abcd"
    transcript = await engine.settle(conversation, OpenTurn("t"))
    assert transcript and transcript.text == "yes"
    assert engine.settled == [(conversation.id, "t")]


async def test_the_stub_does_the_work_of_the_benchmark() -> None:
    engine = load(Settings(model="stub"))
    assert isinstance(engine, StubEngine)
    assert await engine.settle(Conversation(), OpenTurn()) == STUB_TRANSCRIPT
    pieces = [piece async for piece in engine.generate(Conversation(), GenerateOptions())]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == STUB_TEXT
    speech = [piece for piece in pieces if isinstance(piece, SpeechPiece)]
    assert len(speech) == 50
    assert sum(len(piece.pcm) for piece in speech) == 2 * 2 * engine.output_rate
    words = [word for piece in speech for word in piece.words]
    assert [STUB_TEXT[: word.end].split()[-1] for word in words] == STUB_TEXT.split()
    assert isinstance(pieces[-1], Summary)
