"""What a chat model is shown of a conversation, derived from it each time."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import orjson

from echosight.conversation import Conversation, ImagePart, Item, ToolCall, ToolResult
from echosight.media import ImageFrame

Message = dict[str, Any]

UNANSWERED = "No result yet."


def recent(conversation: Conversation, max_turns: int) -> list[Item]:
    """The items of the last `max_turns` turns of the user, and all of the system's.

    Cut in front of a user's item, so that no function result is parted from its call.
    """
    items = conversation.items
    turns = [at for at, item in enumerate(items) if item.role == "user"]
    first = turns[-max_turns] if len(turns) > max_turns else 0
    return [item for at, item in enumerate(items) if at >= first or item.role == "system"]


def joined(items: Iterable[Item]) -> list[Item]:
    """Pictures that were sent as items of their own, as some clients do, become part of what the user says next."""
    whole: list[Item] = []
    for item in items:
        if whole and whole[-1].role == item.role == "user" and not (whole[-1].text or whole[-1].audio):
            whole[-1] = replace(item, parts=whole[-1].parts + item.parts)
        else:
            whole.append(item)
    return whole


def messages(
    conversation: Conversation, *, instructions: str | None = None, max_turns: int = 10, images: bool = True
) -> list[Message]:
    """The conversation in the form that OpenAI-compatible servers and chat templates take.

    `instructions` go before the conversation's own. Pictures become data URIs, or are left out.
    """
    system = conversation.instructions if instructions is None else instructions
    shown: list[Message] = [{"role": "system", "content": system}] if system else []
    for item in recent(conversation, max_turns):
        shown += _of_item(item, images)
    return list(_paired(shown))


def _paired(shown: Iterable[Message]) -> Iterator[Message]:
    """Strict servers want calls that were made at once in one message, and their results at once behind it.

    A call that was not answered, because the user spoke before the function returned, is answered so. A result
    whose call is gone is left out.
    """
    grouped: list[Message] = []
    results: dict[str, Message] = {}
    for message in shown:
        if message["role"] == "tool":
            results[message["tool_call_id"]] = message
        if "tool_calls" in message and grouped and "tool_calls" in grouped[-1]:
            before = grouped[-1]
            grouped[-1] = {**before, "tool_calls": [*before["tool_calls"], *message["tool_calls"]]}
        else:
            grouped.append(message)
    for message in grouped:
        if message["role"] != "tool":
            yield message
        for call in message.get("tool_calls", ()):
            unanswered = {"role": "tool", "tool_call_id": call["id"], "content": UNANSWERED}
            yield results.get(call["id"], unanswered)


def _of_item(item: Item, images: bool) -> list[Message]:
    results: list[Message] = [
        {"role": "tool", "tool_call_id": part.call_id, "content": part.output} for part in item.parts_of(ToolResult)
    ]
    calls = [_call(part) for part in item.parts_of(ToolCall) if item.status != "incomplete" or _is_json(part.arguments)]
    if calls:
        return [{"role": "assistant", "content": item.text or None, "tool_calls": calls}, *results]
    if images and item.images:
        return [{"role": item.role, "content": _mixed(item)}, *results]
    if item.text:
        return [{"role": item.role, "content": item.text}, *results]
    return results


def _call(part: ToolCall) -> dict[str, Any]:
    return {
        "id": part.call_id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments or "{}"},
    }


def _is_json(text: str) -> bool:
    """An answer that was stopped in the middle of a call has made none; servers that read its arguments break."""
    try:
        orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return False
    return True


def _mixed(item: Item) -> list[dict[str, Any]]:
    """Pictures first: models attend better to a question that follows what it is about."""
    shown: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_uri(part.frame)}} for part in item.parts_of(ImagePart)
    ]
    if item.text:
        shown.append({"type": "text", "text": item.text})
    return shown


def data_uri(frame: ImageFrame) -> str:
    return f"data:{frame.media_type};base64,{base64.b64encode(frame.data).decode()}"
