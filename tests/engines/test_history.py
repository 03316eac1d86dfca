import base64

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolCall, ToolResult
from echosight.engines.history import messages, recent
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
