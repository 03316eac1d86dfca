import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from echosight.conversation import AudioPart, Conversation, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import SPEECH_AHEAD, Cascade
from echosight.errors import EngineFailure
from echosight.events import Usage
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

OPTIONS = GenerateOptions()
PIECE_MS = 100


class Part:
    name = "part"

    def __init__(self) -> None:
        self.up = False
        self.released: list[str] = []

    async def start(self) -> None:
        self.up = True

    async def close(self) -> None:
        self.up = False

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)


class Ears(Part):
    name = "ears"

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, bytes] = {}
        self.fail = False
        self.hold: asyncio.Event | None = None

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        if self.fail:
            raise EngineFailure("deaf")
        self.heard[utterance] = self.heard.get(utterance, b"") + pcm
        return f"{len(self.heard[utterance])} bytes"

    async def finish(self, utterance: str) -> Transcript:
        if self.fail:
            raise EngineFailure("deaf")
        if self.hold:
            await self.hold.wait()
        return Transcript(f"{len(self.heard[utterance])} bytes in all")

    async def forget(self, utterance: str) -> None:
        del self.heard[utterance]


class Script(Part):
    name = "chat"

    def __init__(self, *pieces: TextChunk | ToolCallChunk | GenerationSummary | Exception) -> None:
        super().__init__()
        self.pieces = pieces
        self.read = 0
        self.closed = asyncio.Event()
        self.prefilled: list[str] = []

    async def prefill(self, conversation: Conversation, text: str) -> None:
        self.prefilled.append(text)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                self.read += 1
                yield piece
                await asyncio.sleep(0)
        finally:
            self.closed.set()


class Mouth(Part):
    """Speaks `PIECE_MS` of audio a word, at 1000 Hz."""

    name = "mouth"
    rate = 1000
    voices: tuple[str, ...] = ("one",)

    def __init__(self, *, timed: bool = True) -> None:
        super().__init__()
        self.timed = timed
        self.spoken: list[str] = []
        self.pieces = 0
        self.speaking = 0
        self.said: Callable[[], object] = lambda: None

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        self.spoken.append(text)
        self.speaking += 1
        try:
            end = 0
            for n, word in enumerate(text.split()):
                end = text.index(word, end) + len(word)
                self.pieces += 1
                self.said()
                yield SpeechChunk(bytes(2 * PIECE_MS), (Word(n * PIECE_MS, end),) if self.timed else ())
                await asyncio.sleep(0)
        finally:
            self.speaking -= 1


def cascade(
    *pieces: TextChunk | ToolCallChunk | GenerationSummary | Exception, timed: bool = True
) -> tuple[Cascade, Script, Mouth]:
    chat, mouth = Script(*pieces), Mouth(timed=timed)
    return Cascade(Ears(), chat, mouth), chat, mouth


async def answer(engine: Cascade, options: GenerateOptions = OPTIONS) -> list[Chunk]:
    return [piece async for piece in engine.generate(Conversation(), options)]


def text_of(pieces: list[Chunk]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))


def words_of(pieces: list[Chunk]) -> list[Word]:
    return [word for piece in pieces if isinstance(piece, SpeechChunk) for word in piece.words]


# --- answers --------------------------------------------------------------------------------------


async def test_words_are_placed_in_the_whole_answer() -> None:
    engine, _, mouth = cascade(TextChunk("I see it. "), TextChunk("**What** a "), TextChunk("lovely day!"))
    pieces = await answer(engine)
    text = text_of(pieces)
    assert text == "I see it. **What** a lovely day!"
    assert mouth.spoken == ["I see it.", "  What   a lovely day!"]
    assert [(word.start_ms, text[: word.text_end].split()[-1]) for word in words_of(pieces)] == [
        (0, "I"), (100, "see"), (200, "it."), (300, "**What"), (400, "a"), (500, "lovely"), (600, "day!"),
    ]  # fmt: skip


async def test_text_is_there_before_the_speech_of_it() -> None:
    engine, *_ = cascade(*(TextChunk(f"word{n}. ") for n in range(40)))
    said = 0
    async for piece in engine.generate(Conversation(), OPTIONS):
        if isinstance(piece, TextChunk):
            said += len(piece.text)
        elif isinstance(piece, SpeechChunk):
            assert all(word.text_end <= said for word in piece.words)


async def test_estimated_words_cover_the_text_where_the_voice_knows_none() -> None:
    engine, *_ = cascade(TextChunk("A sentence of words. Another one comes then."), timed=False)
    pieces = await answer(engine)
    words = words_of(pieces)
    assert all(piece.pcm for piece in pieces if isinstance(piece, SpeechChunk))
    assert [text_of(pieces)[: word.text_end].split()[-1] for word in words] == text_of(pieces).split()
    assert words == sorted(words, key=lambda word: (word.start_ms, word.text_end))


async def test_the_summary_comes_last_and_names_the_parts() -> None:
    usage = Usage(input_text=3, output_text=1)
    engine, *_ = cascade(TextChunk("Hello"), GenerationSummary(usage, "length"))
    assert (await answer(engine))[-1] == GenerationSummary(usage, "length", ("ears", "chat", "mouth"))


async def test_without_speech_the_voice_is_silent() -> None:
    engine, _, mouth = cascade(TextChunk("Hello. "), TextChunk("There."))
    pieces = await answer(engine, GenerateOptions(speech=False))
    assert pieces == [TextChunk("Hello. "), TextChunk("There."), GenerationSummary(providers=("ears", "chat"))]
    assert not mouth.spoken


async def test_calls_pass_through() -> None:
    call = ToolCallChunk("c1", "weather", '{"in":')
    engine, _, mouth = cascade(call, ToolCallChunk("c1", "weather", '"Rome"}'))
    assert (await answer(engine))[:2] == [call, ToolCallChunk("c1", "weather", '"Rome"}')]
    assert not mouth.spoken


async def test_the_next_sentence_is_spoken_while_the_first_is_read() -> None:
    engine, _, mouth = cascade(TextChunk("One. Two is longer. Three is longer. "))
    ready = asyncio.Event()
    mouth.said = lambda: ready.set() if len(mouth.spoken) == 2 else None
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as pieces:
        async for piece in pieces:
            if isinstance(piece, SpeechChunk):
                assert piece.words[0].text_end == len("One.")
                await asyncio.wait_for(ready.wait(), 10)
                break


async def test_a_slow_reader_holds_back_the_voice_and_the_chat() -> None:
    engine, chat, mouth = cascade(*(TextChunk("some more words to say. ") for _ in range(1000)))
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as pieces:
        await anext(pieces)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert 0 < mouth.pieces <= SPEECH_AHEAD + 2
        assert 0 < chat.read < 50


async def test_closing_stops_the_chat_and_the_voice() -> None:
    engine, chat, mouth = cascade(*(TextChunk("some more words to say. ") for _ in range(1000)))
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as pieces:
        async for piece in pieces:
            if isinstance(piece, SpeechChunk):
                break
        assert mouth.speaking == 1
    assert chat.closed.is_set()
    assert mouth.speaking == 0
    assert len(asyncio.all_tasks()) == 1


async def test_a_failing_chat_ends_the_answer() -> None:
    engine, *_ = cascade(TextChunk("Hello. "), EngineFailure("broken"))
    with pytest.raises(EngineFailure, match="broken"):
        await answer(engine)
    assert len(asyncio.all_tasks()) == 1


# --- hearing --------------------------------------------------------------------------------------


def hearing() -> tuple[Cascade, Ears, Script, Conversation]:
    ears, chat = Ears(), Script(TextChunk("Yes."))
    return Cascade(ears, chat, Mouth()), ears, chat, Conversation(pending_turn=UserTurn("t1"))


def say(conversation: Conversation, *pieces: bytes) -> list[AudioPart]:
    assert conversation.pending_turn is not None
    parts = [AudioPart(pcm) for pcm in pieces]
    for part in parts:
        conversation.pending_turn.add(part)
    return parts


A, B, C = (bytes([n]) * 640 for n in (1, 2, 3))


async def test_speech_is_heard_as_it_comes_and_known_to_the_chat() -> None:
    engine, ears, chat, conversation = hearing()
    for pcm in (A, B):
        (part,) = say(conversation, pcm)
        await engine.prefill(conversation, part)
    assert await engine.prefill(conversation, TextPart("and this")) is None
    assert list(ears.heard.values()) == [A + B]
    assert chat.prefilled == ["", "640 bytes", "1280 bytes"]


async def test_what_was_not_prefilled_is_heard_when_it_is_settled() -> None:
    engine, ears, _, conversation = hearing()
    parts = say(conversation, A, B)
    for part in parts:
        await engine.prefill(conversation, part)
    say(conversation, C)
    assert conversation.pending_turn is not None
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("1920 bytes in all")
    assert list(ears.heard.values()) == [A + B + C]
    other = UserTurn("t2")
    other.add(AudioPart(A))
    assert await engine.finalize_transcript(conversation, other) == Transcript("640 bytes in all")
    assert await engine.finalize_transcript(conversation, UserTurn("t3")) is None


async def test_turns_of_one_name_are_not_mixed() -> None:
    """Clients name their items, and two may choose the same name."""
    engine, _, _, mine = hearing()
    theirs = Conversation(pending_turn=UserTurn("t1"))
    for conversation, pcm in ((mine, A), (theirs, B), (mine, C)):
        (part,) = say(conversation, pcm)
        await engine.prefill(conversation, part)
    for conversation, size in ((mine, 1280), (theirs, 640)):
        assert conversation.pending_turn is not None
        assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript(
            f"{size} bytes in all"
        )


async def test_turns_are_forgotten_when_they_are_over() -> None:
    engine, ears, _, conversation = hearing()
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    turn = conversation.pending_turn
    assert turn is not None
    await engine.finalize_transcript(conversation, turn)
    assert ears.heard  # it may go on
    conversation.pending_turn = None
    async with aclosing(engine.generate(conversation, OPTIONS)) as pieces:
        await anext(pieces)
    assert not ears.heard
    conversation.pending_turn = UserTurn("t2")
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    await engine.release(conversation.id)
    assert not ears.heard


async def test_the_next_turn_may_begin_while_the_last_is_settled() -> None:
    engine, ears, _, conversation = hearing()
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    ears.hold = asyncio.Event()
    turn, conversation.pending_turn = conversation.pending_turn, UserTurn("t2")
    assert turn is not None
    settling = asyncio.create_task(engine.finalize_transcript(conversation, turn))
    await asyncio.sleep(0)
    (part,) = say(conversation, B)
    await engine.prefill(conversation, part)
    ears.hold.set()
    assert await settling == Transcript("640 bytes in all")
    assert list(ears.heard.values()) == [B]


async def test_a_failing_transcriber_fails_the_turn_when_it_is_settled_and_not_before() -> None:
    engine, ears, _, conversation = hearing()
    ears.fail = True
    (part,) = say(conversation, A)
    assert await engine.prefill(conversation, part) is None
    assert conversation.pending_turn is not None
    ears.forget = lambda _: asyncio.sleep(0)  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineFailure, match="deaf"):
        await engine.finalize_transcript(conversation, conversation.pending_turn)
    ears.fail = False
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("640 bytes in all")


async def test_a_turn_that_the_transcriber_failed_in_is_heard_anew_when_it_is_settled() -> None:
    engine, ears, _, conversation = hearing()
    for pcm in (A, B, C):
        ears.fail = pcm is B  # it dies in the middle, and is there again
        (part,) = say(conversation, pcm)
        await engine.prefill(conversation, part)
    assert conversation.pending_turn is not None
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("1920 bytes in all")
    assert list(ears.heard.values()) == [A + B + C]


async def test_all_parts_start_or_none_stays_up() -> None:
    engine, _, _, _ = hearing()
    await engine.start()
    assert engine.voices == ("one",)
    await engine.close()

    async def refuse() -> None:
        raise EngineFailure("no")

    engine.tts.start = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineFailure):
        await engine.start()
    assert isinstance(engine.llm, Part)
    assert not engine.llm.up
