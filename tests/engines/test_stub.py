from echosight.conversation import Conversation, OpenTurn
from echosight.engines import SpeechPiece, Summary, TextPiece
from echosight.engines.registry import load
from echosight.engines.stub import STUB_TEXT, STUB_TRANSCRIPT, StubEngine
from echosight.options import GenerateOptions
from echosight.settings import Settings


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
