"""Chains of scripted parts: who takes over, with what, and for how long."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from echosight.conversation import AudioPart, Conversation, Item, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade.fallback import COOLDOWN_S, LLMChain, STTChain, TTSChain
from echosight.engines.runtime.retries import TransientError
from echosight.errors import CannotSee, EngineFailure, SetupError
from echosight.media import Transcript
from echosight.options import GenerateOptions
from tests.fakes import ScriptedLLM, ScriptedSTT, ScriptedTTS

OPTIONS = GenerateOptions()
FIRST, LATER = "at the first chunk", "later"


def llm(name: str, fails: str = "", failure: EngineFailure | None = None) -> ScriptedLLM:
    texts = TextChunk("This is "), TextChunk(f"{name}. It is a sentence.")
    return ScriptedLLM(*texts, GenerationSummary(finish="length"), name=name, fails=fails, failure=failure)


def tts(name: str, fails: str = "", rate: int = 8_000) -> ScriptedTTS:
    return ScriptedTTS(name, fails, rate=rate, word_ms=500)


def audio_of(stt: ScriptedSTT) -> list[bytes]:
    return [stream.pcm for stream in stt.open_streams]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def replies(chain: LLMChain) -> list[TextChunk | ToolCallChunk | GenerationSummary]:
    return [chunk async for chunk in chain.generate(Conversation(), OPTIONS)]


# --- LLMs -----------------------------------------------------------------------------------------


async def test_the_next_llm_replies_to_the_same_conversation() -> None:
    local, cloud = llm("local", FIRST), llm("cloud")
    chain = LLMChain([local, cloud])
    conversation = Conversation(items=[Item("user", (TextPart("Hi"),))])
    chunks = [chunk async for chunk in chain.generate(conversation, OPTIONS)]
    assert chunks[-1] == GenerationSummary(finish="length", providers=("cloud",))
    assert local.conversations == cloud.conversations == [conversation]


async def test_an_llm_that_cannot_see_is_passed_over_and_stays_the_first() -> None:
    blind, seeing = llm("blind", FIRST, CannotSee("blind takes no images")), llm("seeing")
    chain = LLMChain([blind, seeing])
    assert (await replies(chain))[-1] == GenerationSummary(finish="length", providers=("seeing",))
    assert chain.name == "blind"
    with pytest.raises(CannotSee):
        await replies(LLMChain([blind]))


async def test_a_part_that_failed_is_not_tried_for_a_while() -> None:
    clock = Clock()
    local, cloud = llm("local", FIRST), llm("cloud")
    chain = LLMChain([local, cloud], clock)
    assert chain.name == "local"
    await replies(chain)
    assert chain.name == "cloud"
    await chain.prefill(Conversation(), "Hi")
    await replies(chain)
    assert (len(local.conversations), len(cloud.conversations), cloud.prefilled) == (1, 2, ["Hi"])
    clock.now, local.fails = COOLDOWN_S, ""
    assert (await replies(chain))[-1] == GenerationSummary(finish="length", providers=("local",))


async def test_a_server_that_asks_for_a_longer_pause_has_it() -> None:
    clock = Clock()
    busy = llm("busy", FIRST, TransientError("too many requests", retry_after=10 * COOLDOWN_S))
    chain = LLMChain([busy, llm("other")], clock)
    await replies(chain)
    for now, name in ((9 * COOLDOWN_S, "other"), (10 * COOLDOWN_S, "busy")):
        clock.now = now
        assert chain.name == name


async def test_where_all_fail_the_last_failure_is_raised() -> None:
    local, cloud, last = llm("local", FIRST), llm("cloud", FIRST), llm("last")
    chain = LLMChain([local, cloud, last])
    assert (await replies(chain))[0] == TextChunk("This is ")
    last.fails = FIRST
    with pytest.raises(EngineFailure, match="cloud failed"):
        await replies(chain)
    assert [len(part.conversations) for part in (local, cloud, last)] == [2, 2, 2]


async def test_a_reply_that_has_begun_is_not_begun_again() -> None:
    local, cloud = llm("local", LATER), llm("cloud")
    chain = LLMChain([local, cloud])
    with pytest.raises(EngineFailure, match="local failed"):
        await replies(chain)
    assert cloud.conversations == []
    assert (await replies(chain))[-1] == GenerationSummary(finish="length", providers=("cloud",))


# --- start ----------------------------------------------------------------------------------------


async def test_parts_that_cannot_start_are_left_out() -> None:
    chain = LLMChain([llm("local", "start"), llm("cloud")])
    await chain.start()
    assert [part.name for part in chain.parts] == ["cloud"]
    await chain.close()
    nobody = TTSChain([tts("local", "start"), tts("cloud", "start")])
    with pytest.raises(SetupError, match="local is not installed"):
        await nobody.start()


async def test_the_rate_is_that_of_the_first_tts_that_starts() -> None:
    chain = TTSChain([tts("local", "start", 8_000), tts("cloud", rate=16_000)])
    await chain.start()
    assert (chain.rate, chain.voices, chain.name) == (16_000, ("one",), "cloud")


# --- STTs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["push", "finalize"])
async def test_the_next_stt_gets_all_of_the_audio(step: str) -> None:
    local, cloud = ScriptedSTT("local"), ScriptedSTT("cloud")
    chain = STTChain([local, cloud])
    stream = chain.open("de", "me")
    assert await stream.push(b"first") == "5 bytes"
    assert [(s.language, s.speaker) for s in local.streams] == [("de", "me")]
    local.fails = step
    await stream.push(b"second")
    assert await stream.finalize() == Transcript("11 bytes in all", provider="cloud")
    await stream.push(b"third")
    assert await stream.finalize() == Transcript("16 bytes in all", provider="cloud")
    assert audio_of(cloud) == [b"firstsecondthird"]
    assert [(s.language, s.speaker) for s in cloud.streams] == [("de", "me")]
    assert audio_of(local) == []
    await stream.close()
    assert audio_of(cloud) == []
    await chain.open().push(b"next")
    assert audio_of(cloud) == [b"next"]


async def test_where_all_stts_fail_the_last_failure_is_raised_and_the_stream_goes_on() -> None:
    local, cloud = ScriptedSTT("local", "push"), ScriptedSTT("cloud", "push")
    stream = STTChain([local, cloud]).open()
    with pytest.raises(EngineFailure, match="cloud failed"):
        await stream.push(b"one")
    local.fails = ""
    assert await stream.finalize() == Transcript("3 bytes in all", provider="local")


# --- TTSs -----------------------------------------------------------------------------------------


async def test_the_next_tts_speaks_the_sentence_at_the_rate_of_the_first() -> None:
    local, cloud = tts("local", FIRST), tts("cloud", rate=16_000)
    chain = TTSChain([local, cloud])
    options = replace(OPTIONS, voice="mine")
    chunks = [chunk async for chunk in chain.synthesize("Hello there.", options)]
    assert len(b"".join(chunk.pcm for chunk in chunks)) == 2 * chain.rate == 16_000
    assert {chunk.provider for chunk in chunks} == {"cloud"}
    assert (cloud.texts, [o.voice for o in cloud.options]) == (["Hello there."], [None])
    cloud.voices = ("mine",)
    [chunk async for chunk in chain.synthesize("Hello there.", options)]
    assert cloud.options[1].voice == "mine"


async def test_a_sentence_that_has_begun_is_not_begun_again() -> None:
    cloud = tts("cloud")
    chain = TTSChain([tts("local", LATER), cloud])
    with pytest.raises(EngineFailure, match="local failed"):
        async with aclosing(chain.synthesize("Hello there.", OPTIONS)) as chunks:
            assert (await anext(chunks)).provider == "local"
            await anext(chunks)
    assert cloud.texts == []


@pytest.mark.parametrize(
    ("text", "options", "speaker"),
    [
        ("hello", {}, "english"),
        ("hello", {"language": "en-GB"}, "english"),
        ("hallo", {"language": "de"}, "any"),
        ("hello", {"voice": "two"}, "any"),
        ("hallo", {"voice": "one", "language": "de"}, "english"),
        ("hello", {"voice": "unknown"}, "english"),
        ("今日は", {}, "any"),
        ("naïve café", {}, "english"),
        ("1 + 1", {}, "english"),
    ],
)
async def test_voice_language_and_script_choose_the_part_that_speaks(
    text: str, options: dict[str, Any], speaker: str
) -> None:
    english, other = tts("english"), tts("any")
    english.languages, other.voices = ("en",), ("two", "one")
    chain = TTSChain([english, other])
    await chain.start()
    assert chain.voices == ("one", "two")
    chunks = [chunk async for chunk in chain.synthesize(text, GenerateOptions(**options))]
    assert {chunk.provider for chunk in chunks} == {speaker}


async def test_a_part_that_failed_does_not_speak_its_language_for_a_while() -> None:
    english, other = tts("english", FIRST), tts("any")
    english.languages = ("en",)
    chain = TTSChain([english, other])
    await chain.start()
    for fails in (FIRST, ""):
        english.fails = fails
        assert {chunk.provider async for chunk in chain.synthesize("hello", OPTIONS)} == {"any"}


# --- the whole ------------------------------------------------------------------------------------


async def test_the_summary_names_the_parts_that_made_the_response() -> None:
    stts = [ScriptedSTT("s1", "finalize"), ScriptedSTT("s2")]
    llms, ttss = [llm("l1"), llm("l2")], [tts("t1"), tts("t2")]
    engine = Cascade(STTChain(stts), LLMChain(llms), TTSChain(ttss))
    await engine.start()
    conversation = Conversation(pending_turn=UserTurn("t1"))

    async def turn() -> Chunk:
        assert conversation.pending_turn is not None
        part = conversation.pending_turn.add(AudioPart(bytes(640)))
        await engine.prefill(conversation, part)
        await engine.finalize_transcript(conversation, conversation.pending_turn)
        last: Chunk | None = None
        async for chunk in engine.generate(conversation, OPTIONS):
            last = chunk
        assert last is not None
        return last

    assert await turn() == GenerationSummary(finish="length", providers=("s2", "l1", "t1"))
    llms[0].fails = ttss[0].fails = FIRST
    conversation.pending_turn = UserTurn("t2")
    assert await turn() == GenerationSummary(finish="length", providers=("s2", "l2", "t2"))
    await engine.close()
