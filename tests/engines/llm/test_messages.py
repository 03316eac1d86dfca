import base64

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.engines.llm.messages import UNANSWERED, messages, recent
from echosight.media import ImageFrame


def user(text: str) -> Item:
    return Item("user", (TextPart(text),))


def assistant(text: str) -> Item:
    return Item("assistant", (TextPart(text),))


def test_only_the_last_turns_and_all_of_the_systems_items_are_shown() -> None:
    rule = Item("system", (TextPart("be kind"),))
    items = [user("a"), assistant("A"), rule, user("b"), assistant("B"), user("c")]
    conversation = Conversation(items=items)
    assert recent(conversation, 1) == [rule, items[5]]
    assert recent(conversation, 2) == items[2:]
    assert recent(conversation, 3) == recent(conversation, 9) == items


def test_a_function_result_is_never_parted_from_its_call() -> None:
    call = Item("assistant", (ToolCall("c1", "weather", "{}"),))
    result = Item("tool", (ToolResult("c1", "rain"),))
    conversation = Conversation(items=[user("a"), call, result, assistant("It rains"), user("b")])
    assert recent(conversation, 1) == conversation.items[4:]
    assert messages(conversation)[1:3] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


def test_speech_is_shown_as_its_transcript_and_pictures_as_data() -> None:
    frame = ImageFrame(b"\xff\xd8", "image/jpeg", 1, 1)
    shown = Item("user", (AudioPart(None, transcript="what is this"), ImagePart(frame)))
    silent = Item("user", (AudioPart(b"\0\0"),))
    conversation = Conversation(instructions="be brief", items=[shown, silent])
    url = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8").decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is this"}]
    assert messages(conversation) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": content},
    ]
    assert messages(conversation, instructions="", images=False) == [{"role": "user", "content": "what is this"}]


def test_calls_made_at_once_are_one_message_with_their_results_behind_it() -> None:
    calls = [Item("assistant", (ToolCall(name, "look", "{}"),)) for name in ("c1", "c2")]
    late = [Item("tool", (ToolResult("c2", "two"),)), user("hurry up"), Item("tool", (ToolResult("c1", "one"),))]
    later = Item("assistant", (ToolCall("c3", "look", "{}"),))
    conversation = Conversation(items=[user("a"), assistant("Let me see."), *calls, *late, later, user("well?")])
    shown = messages(conversation)
    assert [message["role"] for message in shown] == [
        *("user", "assistant", "assistant", "tool", "tool"),
        *("user", "assistant", "tool", "user"),
    ]
    assert [call["id"] for call in shown[2]["tool_calls"]] == ["c1", "c2"]
    assert [(m["tool_call_id"], m["content"]) for m in shown[3:5]] == [("c1", "one"), ("c2", "two")]
    assert (shown[7]["tool_call_id"], shown[7]["content"]) == ("c3", UNANSWERED)


def test_one_call_after_the_other_stays_so() -> None:
    rounds = []
    for name in ("c1", "c2"):
        rounds += [Item("assistant", (ToolCall(name, "look", "{}"),)), Item("tool", (ToolResult(name, name),))]
    shown = messages(Conversation(items=[user("a"), *rounds]))
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_result_without_its_call_is_left_out() -> None:
    conversation = Conversation(items=[user("a"), Item("tool", (ToolResult("gone", "one"),))])
    assert [message["role"] for message in messages(conversation)] == ["user"]


def test_a_call_that_was_not_finished_was_not_made() -> None:
    def stopped(arguments: str) -> Conversation:
        return Conversation(items=[user("a"), Item("assistant", (ToolCall("c", "f", arguments),), status="incomplete")])

    assert [message["role"] for message in messages(stopped('{"pla'))] == ["user"]
    _, call, _ = messages(stopped(""))
    assert call["tool_calls"][0]["function"]["arguments"] == "{}"
