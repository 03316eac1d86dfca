"""A session that is written down and built again goes on as the old one would have."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.errors import InputError
from echosight.events import (
    AddItem,
    CommitInput,
    CreateResponse,
    ItemTruncated,
    Output,
    PlaybackProgress,
    RemoveItem,
    ResponseStarted,
    SpeechDelta,
    Text,
    Truncate,
    UpdateOptions,
)
from echosight.media import AudioChunk, ImageFrame, Word
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.server.engine_host import EngineHost
from echosight.session.playback import PlaybackState
from echosight.session.session import Session
from echosight.session.snapshot import SessionSnapshot
from tests.fakes import ScriptedEngine, words
from tests.rig import Bench, Clock, LoudnessVad, bench, loud, quiet

TEXT = st.text(max_size=20)
MS = st.integers(0, 10_000)
WORDS = st.lists(st.builds(Word, MS, st.integers(0, 99)), max_size=3).map(tuple)
TOOLS = st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=2), max_size=2).map(tuple)
PARTS = st.one_of(
    st.builds(TextPart, TEXT),
    st.builds(AudioPart, st.none() | st.binary(max_size=8), st.just(24_000), MS, st.none() | TEXT, WORDS),
    st.builds(ImagePart, st.builds(ImageFrame, st.binary(max_size=8), st.just("image/png"), MS, MS), MS),
    st.builds(ToolCall, TEXT, TEXT, TEXT),
    st.builds(ToolResult, TEXT, TEXT),
)
ITEMS = st.lists(
    st.builds(Item, st.sampled_from(["user", "assistant", "tool"]), st.lists(PARTS, max_size=3).map(tuple), version=MS),
    max_size=4,
)
RESPONSE = st.builds(
    GenerateOptions,
    instructions=st.none() | TEXT,
    voice_sample=st.none() | st.builds(AudioChunk, st.binary(max_size=8), st.just(8_000)),
    tools=st.none() | TOOLS,
    tool_choice=st.sampled_from(["auto", {"type": "function", "name": "look"}]),
    temperature=st.none() | st.floats(0, 2),
)
OPTIONS = st.builds(
    SessionOptions,
    instructions=TEXT,
    language=st.none() | TEXT,
    tools=TOOLS,
    turn_detection=st.none() | st.builds(TurnDetectionOptions, threshold=st.floats(0, 1)),
    response=RESPONSE,
)
PLAYBACK = st.builds(
    PlaybackState, TEXT, WORDS, st.floats(0, 1e6), st.booleans(), st.floats(0, 1e6), MS, st.floats(0, 1e6)
)
SNAPSHOTS = st.builds(
    SessionSnapshot,
    OPTIONS,
    st.builds(Conversation, instructions=TEXT, language=st.none() | TEXT, tools=TOOLS, items=ITEMS),
    st.dictionaries(TEXT, PLAYBACK, max_size=3),
    st.none() | TEXT,
)


@given(SNAPSHOTS)
def test_a_snapshot_goes_to_json_and_back(snapshot: SessionSnapshot) -> None:
    assert SessionSnapshot.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot


@pytest.mark.parametrize("broken", [{}, {"options": {}}, None, 7, []])
def test_other_json_is_refused(broken: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        SessionSnapshot.from_json(broken)


def build_again(old: Bench, engine: ScriptedEngine) -> Bench:
    snapshot = SessionSnapshot.from_json(json.loads(json.dumps(old.session.snapshot().to_json())))
    clock = Clock()
    clock.now = old.clock.now
    session = Session("s", EngineHost(engine), LoudnessVad(), snapshot=snapshot, clock=clock)
    return Bench(session, engine, clock)


def visible(bench: Bench) -> list[Any]:
    """What a client could notice: kinds of events, texts and times, without the ids that are made up anew."""

    def shown(event: Output) -> Any:
        match event:
            case SpeechDelta(chunk=chunk):
                return "speech", len(chunk.pcm)
            case ItemTruncated(audio_ms=ms, text=text):
                return "truncated", ms, text
            case _:
                return type(event).__name__, getattr(event, "text", None), getattr(event, "outcome", None)

    return [shown(event) for event in bench.seen]


async def test_a_session_built_from_it_behaves_as_the_old_one() -> None:
    scripts = [words("one two three four five six"), words("seven eight")]
    async with bench(ScriptedEngine(scripts)) as old:
        changes = UpdateOptions({"instructions": "Be kind.", "language": "de", "response": {"voice": "one"}})
        await old.feed(changes, loud(320), quiet(640))
        await old.turn()
        old.clock.now += 0.25
        new = build_again(old, ScriptedEngine(scripts[1:]))
        assert new.session.options == old.session.options
        assert new.session.conversation == old.session.conversation
        spoken = old.session.conversation.items[1].id
        old.seen.clear()
        for each in (old, new):
            await each.feed(Truncate(spoken, 250), RemoveItem(each.session.conversation.items[0].id))
            with pytest.raises(InputError):
                await each.feed(Truncate(spoken, 5_000))
            await each.feed(AddItem(Item("user", (TextPart("and then?"),))), CreateResponse())
            await each.turn()
        assert visible(new)[1:] == visible(old), "after its own SessionOpened"
        assert new.engine.options == old.engine.options[1:]
        assert [i.text for i in new.session.conversation] == [i.text for i in old.session.conversation]
        assert new.session.conversation.instructions == "Be kind."
        await new.session.close()


async def test_what_was_played_before_the_snapshot_counts() -> None:
    async with bench(ScriptedEngine([words("one two three four five six")])) as old:
        await old.feed(Text("hi"), CommitInput(), CreateResponse())
        await old.turn()
        item = old.session.conversation.items[1]
        await old.feed(PlaybackProgress(item.id, 120))
        state = old.session.snapshot().playback[item.id]
        assert (state.played_ms, state.duration_ms, state.text) == (120, 600, item.text)
        new = build_again(old, ScriptedEngine())
        new.clock.now += 60
        assert new.session.snapshot().playback[item.id].played_ms == 120
        await new.session.close()


async def test_a_response_in_progress_counts_as_far_as_it_was_played() -> None:
    engine = ScriptedEngine([words("one two three four five six")], gate=asyncio.Semaphore(4))
    async with bench(engine) as old:
        await old.feed(AddItem(Item("user", (TextPart("hi"),))), CreateResponse())
        await old.until(ResponseStarted)
        for _ in range(3):
            await old.until(SpeechDelta)
        old.clock.now += 0.15
        snapshot = old.session.snapshot()
        assert [(i.text, i.status) for i in snapshot.conversation] == [("hi", "completed"), ("one two", "incomplete")]
        assert old.session.conversation.items[1].status == "in_progress", "the session itself goes on"
