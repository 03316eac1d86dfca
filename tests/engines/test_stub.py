from echosight.conversation import Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.registry import load
from echosight.engines.stub import STUB_TEXT, STUB_TRANSCRIPT, StubEngine
from echosight.options import GenerateOptions
from echosight.settings import Settings


async def test_the_stub_does_the_work_of_the_benchmark() -> None:
    engine = load(Settings(model="stub"))
    assert isinstance(engine, StubEngine)
    assert await engine.finalize_transcript(Conversation(), UserTurn()) == STUB_TRANSCRIPT
    pieces = [piece async for piece in engine.generate(Conversation(), GenerateOptions())]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextChunk)) == STUB_TEXT
    speech = [piece for piece in pieces if isinstance(piece, SpeechChunk)]
    assert len(speech) == 50
    assert sum(len(piece.pcm) for piece in speech) == 2 * 2 * engine.output_rate
    words = [word for piece in speech for word in piece.words]
    assert [STUB_TEXT[: word.text_end].split()[-1] for word in words] == STUB_TEXT.split()
    assert isinstance(pieces[-1], GenerationSummary)
