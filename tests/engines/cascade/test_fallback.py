from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from echosight.conversation import AudioPart, Conversation, Item, TextPart, UserTurn
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade.fallback import REST_S, LLMChain, STTChain, TTSChain
from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript
from echosight.options import GenerateOptions

OPTIONS = GenerateOptions()


class Part:
    """Works while `fails` is None; "start", "at once" and "in the middle" are ways to fail."""

    def __init__(self, name: str, fails: str | None = None) -> None:
        self.name = name
        self.fails = fails
        self.up = False
        self.released: list[str] = []

    async def start(self) -> None:
        if self.fails == "start":
            raise SetupError(f"{self.name} is not installed")
        self.up = True

    async def close(self) -> None:
        self.up = False

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)

    def check(self, when: str) -> None:
        if self.fails == when:
            raise EngineFailure(f"{self.name} failed")


class Ears(Part):
    def __init__(self, name: str, fails: str | None = None) -> None:
        super().__init__(name, fails)
        self.heard: dict[str, bytes] = {}

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        self.check("at once")
        self.heard[utterance] = self.heard.get(utterance, b"") + pcm
        return f"{language} {speaker}"

    async def finish(self, utterance: str) -> Transcript:
        self.check("in the middle")
        return Transcript(str(len(self.heard[utterance])))

    async def forget(self, utterance: str) -> None:
        self.heard.pop(utterance, None)


class Script(Part):
    def __init__(self, name: str, fails: str | None = None) -> None:
        super().__init__(name, fails)
        self.asked: list[Conversation] = []
        self.prefilled: list[str] = []

    async def prefill(self, conversation: Conversation, text: str) -> None:
        self.prefilled.append(text)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        self.asked.append(conversation)
        self.check("at once")
        yield TextChunk("This is ")
        self.check("in the middle")
        yield TextChunk(f"{self.name}. It is a sentence.")
        yield GenerationSummary(finish="length")


class Mouth(Part):
    rate = 8_000
    voices: tuple[str, ...] = ("one",)

    def __init__(self, name: str, fails: str | None = None, rate: int = 8_000) -> None:
        super().__init__(name, fails)
        self.rate = rate
        self.said: list[tuple[str, str | None]] = []

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        self.check("at once")
        self.said.append((text, options.voice))
        yield SpeechChunk(bytes(self.rate))
        self.check("in the middle")
        yield SpeechChunk(bytes(self.rate))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def replies(chain: LLMChain) -> list[TextChunk | ToolCallChunk | GenerationSummary]:
    return [piece async for piece in chain.generate(Conversation(), OPTIONS)]


# --- chats ----------------------------------------------------------------------------------------


async def test_the_next_in_line_answers_with_the_same_conversation() -> None:
    local, cloud = Script("local", "at once"), Script("cloud")
    chain = LLMChain([local, cloud])
    conversation = Conversation(items=[Item("user", (TextPart("Hi"),))])
    pieces = [piece async for piece in chain.generate(conversation, OPTIONS)]
    assert pieces[-1] == GenerationSummary(finish="length", providers=("cloud",))
    assert local.asked == cloud.asked == [conversation]


async def test_who_failed_is_passed_over_for_a_while() -> None:
    clock = Clock()
    local, cloud = Script("local", "at once"), Script("cloud")
    chain = LLMChain([local, cloud], clock)
    assert chain.name == "local"
    await replies(chain)
    assert chain.name == "cloud"
    await chain.prefill(Conversation(), "Hi")
    await replies(chain)
    assert (len(local.asked), len(cloud.asked), cloud.prefilled) == (1, 2, ["Hi"])
    clock.now, local.fails = REST_S, None
    assert (await replies(chain))[-1] == GenerationSummary(finish="length", providers=("local",))


async def test_who_asks_for_a_longer_rest_has_it() -> None:
    class Busy(Script):
        def check(self, when: str) -> None:
            if self.fails == when:
                raise TransientError("too many requests", retry_after=10 * REST_S)

    clock = Clock()
    busy, other = Busy("busy", "at once"), Script("other")
    chain = LLMChain([busy, other], clock)
    await replies(chain)
    for now, name in ((9 * REST_S, "other"), (10 * REST_S, "busy")):
        clock.now = now
        assert chain.name == name


async def test_from_local_to_cloud_and_back() -> None:
    local, cloud, last = Script("local", "at once"), Script("cloud", "at once"), Script("last")
    chain = LLMChain([local, cloud, last])
    assert (await replies(chain))[0] == TextChunk("This is ")
    last.fails = "at once"
    with pytest.raises(EngineFailure, match="cloud failed"):
        await replies(chain)
    assert [len(part.asked) for part in (local, cloud, last)] == [2, 2, 2]


async def test_what_was_begun_is_not_begun_again() -> None:
    local, cloud = Script("local", "in the middle"), Script("cloud")
    chain = LLMChain([local, cloud])
    with pytest.raises(EngineFailure, match="local failed"):
        await replies(chain)
    assert cloud.asked == []
    assert (await replies(chain))[-1] == GenerationSummary(finish="length", providers=("cloud",))


# --- start ----------------------------------------------------------------------------------------


async def test_who_cannot_start_is_left_out() -> None:
    chain = LLMChain([Script("local", "start"), Script("cloud")])
    await chain.start()
    assert [part.name for part in chain.parts] == ["cloud"]
    await chain.close()
    nobody = TTSChain([Mouth("local", "start"), Mouth("cloud", "start")])
    with pytest.raises(SetupError, match="local is not installed"):
        await nobody.start()


async def test_a_voice_left_out_takes_its_rate_along() -> None:
    chain = TTSChain([Mouth("local", "start", 8_000), Mouth("cloud", rate=16_000)])
    await chain.start()
    assert (chain.rate, chain.voices, chain.name) == (16_000, ("one",), "cloud")


# --- transcribers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at once", "in the middle"])
async def test_what_was_heard_goes_along(when: str) -> None:
    local, cloud = Ears("local"), Ears("cloud")
    chain = STTChain([local, cloud])
    assert await chain.hear("u", b"one", "de", "me") == "de me"
    local.fails = when
    await chain.hear("u", b"two", "de", "me")
    assert await chain.finish("u") == Transcript("6", provider="cloud")
    await chain.hear("u", b"three")
    assert await chain.finish("u") == Transcript("11", provider="cloud")
    assert cloud.heard == {"u": b"onetwothree"}
    assert local.heard == {}
    await chain.forget("u")
    assert cloud.heard == {}
    await chain.hear("v", b"next")
    assert "v" in cloud.heard


async def test_where_nobody_hears_the_last_one_tells() -> None:
    local, cloud = Ears("local", "at once"), Ears("cloud", "at once")
    chain = STTChain([local, cloud])
    with pytest.raises(EngineFailure, match="cloud failed"):
        await chain.hear("u", b"one")
    local.fails = None
    assert await chain.finish("u") == Transcript("3", provider="local")
    with pytest.raises(EngineFailure, match="heard nothing"):
        await chain.finish("v")


# --- voices ---------------------------------------------------------------------------------------


async def test_a_sentence_is_spoken_by_who_can_at_the_same_rate() -> None:
    local, cloud = Mouth("local", "at once"), Mouth("cloud", rate=16_000)
    chain = TTSChain([local, cloud])
    options = replace(OPTIONS, voice="mine")
    pieces = [piece async for piece in chain.synthesize("Hello.", options)]
    assert len(b"".join(piece.pcm for piece in pieces)) == 2 * chain.rate == 16_000
    assert {piece.provider for piece in pieces} == {"cloud"}
    assert cloud.said == [("Hello.", None)]
    cloud.voices = ("mine",)
    [piece async for piece in chain.synthesize("Hello.", options)]
    assert cloud.said[1] == ("Hello.", "mine")


async def test_half_a_sentence_is_not_spoken_twice() -> None:
    cloud = Mouth("cloud")
    chain = TTSChain([Mouth("local", "in the middle"), cloud])
    with pytest.raises(EngineFailure, match="local failed"):
        async with aclosing(chain.synthesize("Hello.", OPTIONS)) as pieces:
            assert (await anext(pieces)).provider == "local"
            await anext(pieces)
    assert cloud.said == []


# --- the whole ------------------------------------------------------------------------------------


async def test_the_record_of_a_turn_names_who_made_it() -> None:
    ears, chats, mouths = (
        [Ears("e1", "in the middle"), Ears("e2")],
        [Script("c1"), Script("c2")],
        [Mouth("m1"), Mouth("m2")],
    )
    engine = Cascade(STTChain(ears), LLMChain(chats), TTSChain(mouths))
    await engine.start()
    conversation = Conversation(pending_turn=UserTurn("t1"))

    async def turn() -> Chunk:
        assert conversation.pending_turn is not None
        part = conversation.pending_turn.add(AudioPart(bytes(640)))
        await engine.prefill(conversation, part)
        await engine.finalize_transcript(conversation, conversation.pending_turn)
        last: Chunk | None = None
        async for piece in engine.generate(conversation, OPTIONS):
            last = piece
        assert last is not None
        return last

    assert await turn() == GenerationSummary(finish="length", providers=("e2", "c1", "m1"))
    chats[0].fails = mouths[0].fails = "at once"
    conversation.pending_turn = UserTurn("t2")
    assert await turn() == GenerationSummary(finish="length", providers=("e2", "c2", "m2"))
    await engine.close()
