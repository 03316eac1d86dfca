"""The chat messages that an LLM reads."""

from __future__ import annotations

import base64

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.engines.llm.messages import PENDING_RESULT, recent_items, to_messages
from echosight.media import ImageFrame


def user(text: str) -> Item:
    return Item("user", (TextPart(text),))


def assistant(text: str) -> Item:
    return Item("assistant", (TextPart(text),))


def test_the_last_turns_and_every_system_item_are_kept() -> None:
    rule = Item("system", (TextPart("be kind"),))
    items = [user("a"), assistant("A"), rule, user("b"), assistant("B"), user("c")]
    conversation = Conversation(items=items)
    assert recent_items(conversation, 1) == [rule, items[5]]
    assert recent_items(conversation, 2) == items[2:]
    assert recent_items(conversation, 3) == recent_items(conversation, 9) == items


def test_a_function_result_keeps_its_call() -> None:
    call = Item("assistant", (ToolCall("c1", "weather", "{}"),))
    result = Item("tool", (ToolResult("c1", "rain"),))
    conversation = Conversation(items=[user("a"), call, result, assistant("It rains"), user("b")])
    assert recent_items(conversation, 1) == conversation.items[4:]
    assert to_messages(conversation)[1:3] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


def test_speech_becomes_its_transcript_and_images_data_uris() -> None:
    frame = ImageFrame(b"\xff\xd8", "image/jpeg", 1, 1)
    with_image = Item("user", (AudioPart(None, transcript="what is this"), ImagePart(frame)))
    silent = Item("user", (AudioPart(b"\0\0"),))
    conversation = Conversation(instructions="be brief", items=[with_image, silent])
    url = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8").decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is this"}]
    assert to_messages(conversation) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": content},
    ]
    assert to_messages(conversation, instructions="", images=False) == [{"role": "user", "content": "what is this"}]


def test_parallel_calls_are_one_message_followed_by_their_results() -> None:
    calls = [Item("assistant", (ToolCall(name, "look", "{}"),)) for name in ("c1", "c2")]
    late = [Item("tool", (ToolResult("c2", "two"),)), user("hurry up"), Item("tool", (ToolResult("c1", "one"),))]
    later = Item("assistant", (ToolCall("c3", "look", "{}"),))
    conversation = Conversation(items=[user("a"), assistant("Let me see."), *calls, *late, later, user("well?")])
    found = to_messages(conversation)
    assert [message["role"] for message in found] == [
        *("user", "assistant", "assistant", "tool", "tool"),
        *("user", "assistant", "tool", "user"),
    ]
    assert [call["id"] for call in found[2]["tool_calls"]] == ["c1", "c2"]
    assert [(m["tool_call_id"], m["content"]) for m in found[3:5]] == [("c1", "one"), ("c2", "two")]
    assert (found[7]["tool_call_id"], found[7]["content"]) == ("c3", PENDING_RESULT)


def test_sequential_calls_stay_separate() -> None:
    rounds = []
    for name in ("c1", "c2"):
        rounds += [Item("assistant", (ToolCall(name, "look", "{}"),)), Item("tool", (ToolResult(name, name),))]
    found = to_messages(Conversation(items=[user("a"), *rounds]))
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_result_without_its_call_is_left_out() -> None:
    conversation = Conversation(items=[user("a"), Item("tool", (ToolResult("gone", "one"),))])
    assert [message["role"] for message in to_messages(conversation)] == ["user"]


def test_an_incomplete_call_is_left_out() -> None:
    def cancelled(arguments: str) -> Conversation:
        return Conversation(items=[user("a"), Item("assistant", (ToolCall("c", "f", arguments),), status="incomplete")])

    assert [message["role"] for message in to_messages(cancelled('{"pla'))] == ["user"]
    _, call, _ = to_messages(cancelled(""))
    assert call["tool_calls"][0]["function"]["arguments"] == "{}"
