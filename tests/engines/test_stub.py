"""The engine for load tests."""

from __future__ import annotations

from echosight.conversation import Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.registry import load
from echosight.engines.stub import STUB_TEXT, STUB_TRANSCRIPT, StubEngine
from echosight.options import GenerateOptions
from echosight.settings import Settings


async def test_the_stub_gives_the_response_that_benchmarks_expect() -> None:
    engine = load(Settings(model="stub"))
    assert isinstance(engine, StubEngine)
    assert await engine.finalize_transcript(Conversation(), UserTurn()) == STUB_TRANSCRIPT
    chunks = [chunk async for chunk in engine.generate(Conversation(), GenerateOptions())]
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)) == STUB_TEXT
    speech = [chunk for chunk in chunks if isinstance(chunk, SpeechChunk)]
    assert len(speech) == 50
    assert sum(len(chunk.pcm) for chunk in speech) == 2 * 2 * engine.output_rate
    words = [word for chunk in speech for word in chunk.words]
    assert [STUB_TEXT[: word.text_end].split()[-1] for word in words] == STUB_TEXT.split()
    assert isinstance(chunks[-1], GenerationSummary)
