"""The conversation as plain data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.conversation import (
    AudioPart,
    Conversation,
    ImagePart,
    Item,
    Part,
    TextPart,
    ToolCall,
    ToolResult,
    UserTurn,
)
from echosight.media import ImageFrame, Word

words = st.builds(Word, st.integers(0, 10**6), st.integers(0, 10**4))
parts: st.SearchStrategy[Part] = st.one_of(
    st.builds(TextPart, st.text()),
    st.builds(
        AudioPart,
        st.none() | st.binary(max_size=64),
        st.just(16_000),
        st.integers(0, 10**6),
        st.none() | st.text(),
        st.lists(words, max_size=3).map(tuple),
    ),
    st.builds(ImagePart, st.builds(ImageFrame, st.binary(max_size=32), st.just("image/png"), st.just(1), st.just(1))),
    st.builds(ToolCall, st.text(), st.text(), st.text()),
    st.builds(ToolResult, st.text(), st.text()),
)
items = st.lists(
    st.builds(Item, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(parts, max_size=3).map(tuple)),
    max_size=4,
)


@given(items, st.text(), st.none() | st.text())
def test_to_json_and_from_json_are_inverse(contents: list[Item], instructions: str, language: str | None) -> None:
    conversation = Conversation("c", instructions, language, ({"name": "f"},), contents)
    assert Conversation.from_json(json.loads(json.dumps(conversation.to_json()))) == conversation


def talk() -> Conversation:
    conversation = Conversation()
    for number in range(3):
        conversation.add(Item("user", (TextPart(str(number)),), f"i{number}"))
    return conversation


def test_items_go_where_they_are_put() -> None:
    conversation = talk()
    assert conversation.add(Item("user", (), "front"), "root") is None
    assert conversation.add(Item("user", (), "middle"), "i0") == "i0"
    assert [item.id for item in conversation] == ["front", "i0", "middle", "i1", "i2"]
    with pytest.raises(KeyError):
        conversation.add(Item("user", (), "x"), "nobody")
    with pytest.raises(KeyError):
        conversation.add(Item("user", (), "i1"))


def versions(conversation: Conversation) -> list[tuple[str, int]]:
    return [(item.id, item.version) for item in conversation]


def test_an_edit_changes_the_version_of_its_item() -> None:
    conversation = talk()
    before = versions(conversation)
    conversation.update(Item("user", (TextPart("changed"),), "i1"))
    assert versions(conversation) == [before[0], ("i1", 1), before[2]]


def test_a_transcript_or_dropped_bytes_are_no_edit() -> None:
    conversation = Conversation()
    for number in range(3):
        conversation.add(Item("user", (AudioPart(b"\0" * 32_000, duration_ms=1000),), f"i{number}"))
    before = versions(conversation)
    for number in range(2):
        conversation.set_transcript(f"i{number}", f"said {number}")
    conversation.set_transcript("gone", "nothing happens")
    conversation.trim_media(keep_ms=1000, keep_image_bytes=0)
    assert versions(conversation) == before
    kept = [item.audio is not None and item.audio.pcm is not None for item in conversation]
    assert kept == [False, False, True]
    assert conversation.items[0].text == "said 0"


def test_speech_without_a_transcript_is_never_dropped() -> None:
    conversation = Conversation()
    conversation.add(Item("user", (AudioPart(b"\0" * 32_000, duration_ms=1000),), "i"))
    conversation.trim_media(keep_ms=0, keep_image_bytes=0)
    assert conversation.items[0].audio is not None
    assert conversation.items[0].audio.pcm is not None


def test_the_oldest_images_are_removed() -> None:
    conversation = Conversation()
    frame = ImageFrame(b"x" * 100, "image/jpeg", 1, 1)
    for number in range(3):
        parts = (AudioPart(b"\0" * 32, duration_ms=1, transcript="said"), ImagePart(frame), TextPart("look"))
        conversation.add(Item("user", parts, f"i{number}"))
    conversation.trim_media(keep_ms=1, keep_image_bytes=200)
    assert [len(item.images) for item in conversation] == [0, 1, 1]
    assert versions(conversation) == [("i0", 1), ("i1", 0), ("i2", 0)], "an engine must not believe it still sees it"
    assert conversation.items[0].text == "said look"
    oldest = conversation.items[0].audio
    assert oldest is not None
    assert oldest.pcm is None


def test_images_know_when_they_were_shown() -> None:
    turn = UserTurn()
    frame = ImageFrame(b"", "image/png", 1, 1)
    turn.add(AudioPart(b"\0" * 3200))
    turn.add(ImagePart(frame))
    turn.add(AudioPart(b"\0" * 3200))
    item = turn.to_item()
    assert item.audio is not None
    assert (item.audio.duration_ms, [p.at_ms for p in item.parts_of(ImagePart)]) == (200, [100])
    assert UserTurn.from_item(item).to_item() == item
