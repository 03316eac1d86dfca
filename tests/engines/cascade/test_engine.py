"""A cascade of scripted parts: what overlaps, where words are placed, and what happens when a part fails."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from echosight.conversation import AudioPart, Conversation, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import MAX_SPEECH_AHEAD, Cascade
from echosight.errors import EngineFailure
from echosight.events import Usage
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions
from tests.fakes import Script, ScriptedLLM, ScriptedSTT, ScriptedSTTStream, ScriptedTTS

OPTIONS = GenerateOptions()


def cascade(*script: Script, timed: bool = True) -> tuple[Cascade, ScriptedLLM, ScriptedTTS]:
    llm, tts = ScriptedLLM(*script), ScriptedTTS(timed=timed)
    return Cascade(ScriptedSTT(), llm, tts), llm, tts


async def respond(engine: Cascade, options: GenerateOptions = OPTIONS) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(Conversation(), options)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


def words_of(chunks: list[Chunk]) -> list[Word]:
    return [word for chunk in chunks if isinstance(chunk, SpeechChunk) for word in chunk.words]


# --- responses ------------------------------------------------------------------------------------


async def test_words_are_placed_in_the_whole_response() -> None:
    engine, _, tts = cascade(TextChunk("I see it. "), TextChunk("**What** a "), TextChunk("lovely day!"))
    chunks = await respond(engine)
    text = text_of(chunks)
    assert text == "I see it. **What** a lovely day!"
    assert tts.texts == ["I see it.", "  What   a lovely day!"]
    assert [(word.start_ms, text[: word.text_end].split()[-1]) for word in words_of(chunks)] == [
        (0, "I"), (100, "see"), (200, "it."), (300, "**What"), (400, "a"), (500, "lovely"), (600, "day!"),
    ]  # fmt: skip


async def test_text_comes_before_its_speech() -> None:
    engine, *_ = cascade(*(TextChunk(f"word{n}. ") for n in range(40)))
    text_length = 0
    async for chunk in engine.generate(Conversation(), OPTIONS):
        if isinstance(chunk, TextChunk):
            text_length += len(chunk.text)
        elif isinstance(chunk, SpeechChunk):
            assert all(word.text_end <= text_length for word in chunk.words)


async def test_words_are_estimated_where_the_tts_gives_none() -> None:
    engine, *_ = cascade(TextChunk("A sentence of words. Another one comes then."), timed=False)
    chunks = await respond(engine)
    words = words_of(chunks)
    assert all(chunk.pcm for chunk in chunks if isinstance(chunk, SpeechChunk))
    assert [text_of(chunks)[: word.text_end].split()[-1] for word in words] == text_of(chunks).split()
    assert words == sorted(words, key=lambda word: (word.start_ms, word.text_end))


async def test_the_summary_comes_last_and_names_the_parts() -> None:
    usage = Usage(input_text=3, output_text=1)
    engine, *_ = cascade(TextChunk("Hello"), GenerationSummary(usage, "length"))
    assert (await respond(engine))[-1] == GenerationSummary(usage, "length", ("stt", "llm", "tts"))


async def test_without_speech_the_tts_is_not_used() -> None:
    engine, _, tts = cascade(TextChunk("Hello. "), TextChunk("There."))
    chunks = await respond(engine, GenerateOptions(speech=False))
    assert chunks == [TextChunk("Hello. "), TextChunk("There."), GenerationSummary(providers=("stt", "llm"))]
    assert not tts.texts


async def test_tool_calls_pass_through() -> None:
    call = ToolCallChunk("c1", "weather", '{"in":')
    engine, _, tts = cascade(call, ToolCallChunk("c1", "weather", '"Rome"}'))
    assert (await respond(engine))[:2] == [call, ToolCallChunk("c1", "weather", '"Rome"}')]
    assert not tts.texts


async def test_the_next_sentence_is_synthesised_while_the_first_is_read() -> None:
    engine, _, tts = cascade(TextChunk("One. Two is longer. Three is longer. "))
    ready = asyncio.Event()
    tts.on_chunk = lambda: ready.set() if len(tts.texts) == 2 else None
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, SpeechChunk):
                assert chunk.words[0].text_end == len("One.")
                await asyncio.wait_for(ready.wait(), 10)
                break


async def test_a_slow_reader_holds_back_the_tts_and_the_llm() -> None:
    engine, llm, tts = cascade(*(TextChunk("some more words to say. ") for _ in range(1000)))
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as chunks:
        await anext(chunks)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert 0 < tts.steps <= MAX_SPEECH_AHEAD + 2
        assert 0 < llm.steps < 50


async def test_closing_stops_the_llm_and_the_tts() -> None:
    engine, llm, tts = cascade(*(TextChunk("some more words to say. ") for _ in range(1000)))
    async with aclosing(engine.generate(Conversation(), OPTIONS)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, SpeechChunk):
                break
        assert tts.speaking == 1
    assert llm.ended.is_set()
    assert tts.speaking == 0
    assert len(asyncio.all_tasks()) == 1


async def test_a_failing_llm_fails_the_response() -> None:
    engine, *_ = cascade(TextChunk("Hello. "), EngineFailure("broken"))
    with pytest.raises(EngineFailure, match="broken"):
        await respond(engine)
    assert len(asyncio.all_tasks()) == 1


# --- transcripts ----------------------------------------------------------------------------------


def hearing() -> tuple[Cascade, ScriptedSTT, ScriptedLLM, Conversation]:
    stt, llm = ScriptedSTT(), ScriptedLLM(TextChunk("Yes."))
    return Cascade(stt, llm, ScriptedTTS()), stt, llm, Conversation(pending_turn=UserTurn("t1"))


def say(conversation: Conversation, *pcms: bytes) -> list[AudioPart]:
    assert conversation.pending_turn is not None
    parts = [AudioPart(pcm) for pcm in pcms]
    for part in parts:
        conversation.pending_turn.add(part)
    return parts


def pushed(stt: ScriptedSTT) -> list[bytes]:
    """The audio of the open streams."""
    return [stream.pcm for stream in stt.open_streams]


A, B, C = (bytes([n]) * 640 for n in (1, 2, 3))


async def test_speech_is_pushed_while_the_user_speaks_and_the_llm_prefills_its_text() -> None:
    engine, stt, llm, conversation = hearing()
    for pcm in (A, B):
        (part,) = say(conversation, pcm)
        await engine.prefill(conversation, part)
    assert await engine.prefill(conversation, TextPart("and this")) is None
    assert pushed(stt) == [A + B]
    assert llm.prefilled == ["", "640 bytes", "1280 bytes"]


async def test_speech_that_was_not_prefilled_is_pushed_when_the_transcript_is_finalized() -> None:
    engine, stt, _, conversation = hearing()
    parts = say(conversation, A, B)
    for part in parts:
        await engine.prefill(conversation, part)
    say(conversation, C)
    assert conversation.pending_turn is not None
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("1920 bytes in all")
    assert pushed(stt) == [A + B + C]
    other = UserTurn("t2")
    other.add(AudioPart(A))
    assert await engine.finalize_transcript(conversation, other) == Transcript("640 bytes in all")
    assert await engine.finalize_transcript(conversation, UserTurn("t3")) is None


async def test_turns_of_the_same_id_in_two_conversations_do_not_mix() -> None:
    """Clients choose the ids of their items."""
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


async def test_streams_are_closed_when_their_turn_is_over() -> None:
    engine, stt, _, conversation = hearing()
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    turn = conversation.pending_turn
    assert turn is not None
    await engine.finalize_transcript(conversation, turn)
    assert stt.open_streams  # the turn may go on
    conversation.pending_turn = None
    async with aclosing(engine.generate(conversation, OPTIONS)) as chunks:
        await anext(chunks)
    assert not stt.open_streams
    conversation.pending_turn = UserTurn("t2")
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    await engine.release(conversation.id)
    assert not stt.open_streams


async def test_the_next_turn_may_begin_while_the_last_one_is_finalized() -> None:
    engine, stt, _, conversation = hearing()
    (part,) = say(conversation, A)
    await engine.prefill(conversation, part)
    stt.hold = asyncio.Event()
    turn, conversation.pending_turn = conversation.pending_turn, UserTurn("t2")
    assert turn is not None
    finalizing = asyncio.create_task(engine.finalize_transcript(conversation, turn))
    await asyncio.sleep(0)
    (part,) = say(conversation, B)
    await engine.prefill(conversation, part)
    stt.hold.set()
    assert await finalizing == Transcript("640 bytes in all")
    assert pushed(stt) == [B]


async def test_a_failing_stt_fails_the_final_transcript_and_not_the_prefill() -> None:
    engine, stt, _, conversation = hearing()
    stt.fails = "push"
    (part,) = say(conversation, A)
    assert await engine.prefill(conversation, part) is None
    assert conversation.pending_turn is not None
    with pytest.raises(EngineFailure, match="stt failed"):
        await engine.finalize_transcript(conversation, conversation.pending_turn)
    assert not stt.open_streams
    stt.fails = ""
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("640 bytes in all")


async def test_after_a_failure_the_whole_turn_is_pushed_again_when_it_is_finalized() -> None:
    engine, stt, _, conversation = hearing()
    for pcm in (A, B, C):
        stt.fails = "push" if pcm is B else ""  # it dies in the middle and is restarted
        (part,) = say(conversation, pcm)
        await engine.prefill(conversation, part)
    assert conversation.pending_turn is not None
    assert await engine.finalize_transcript(conversation, conversation.pending_turn) == Transcript("1920 bytes in all")
    assert pushed(stt) == [A + B + C]


async def test_a_push_that_was_cancelled_is_repeated_from_the_beginning_of_the_turn() -> None:
    conversation = Conversation(pending_turn=UserTurn("t1"))
    stuck = asyncio.Event()

    class Stuck(ScriptedSTT):
        def open(self, language: str | None = None, speaker: str | None = None) -> ScriptedSTTStream:
            stream = super().open(language, speaker)
            if len(self.streams) == 1:
                stream.push = lambda pcm: stuck.wait()  # type: ignore[method-assign, assignment, return-value]
            return stream

    stt = Stuck()
    engine = Cascade(stt, ScriptedLLM(), ScriptedTTS())
    (part,) = say(conversation, A)
    pushing = asyncio.create_task(engine.prefill(conversation, part))
    await asyncio.sleep(0)
    pushing.cancel()
    await asyncio.wait([pushing])
    (part,) = say(conversation, B)
    assert await engine.prefill(conversation, part) == "1280 bytes"
    assert pushed(stt) == [A + B]


async def test_all_parts_start_or_none_stays_up() -> None:
    engine, _, llm, _ = hearing()
    await engine.start()
    assert engine.voices == ("one",)
    await engine.close()

    async def refuse() -> None:
        raise EngineFailure("no")

    engine.tts.start = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineFailure):
        await engine.start()
    assert not llm.up
