"""A conversation as the list of chat messages that LLMs read; derived from the conversation for each request."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import orjson

from echosight.conversation import Conversation, ImagePart, Item, ToolCall, ToolResult
from echosight.media import ImageFrame

Message = dict[str, Any]
"""A message of OpenAI's chat completions, as JSON values."""

PENDING_RESULT = "No result yet."
"""Stands for the result of a function that has not returned yet."""


def recent_items(conversation: Conversation, max_turns: int) -> list[Item]:
    """The items of the user's last `max_turns` turns, and every system item.

    The cut is in front of a user item, so a function result always keeps its call.
    """
    items = conversation.items
    turns = [index for index, item in enumerate(items) if item.role == "user"]
    first = turns[-max_turns] if len(turns) > max_turns else 0
    return [item for index, item in enumerate(items) if index >= first or item.role == "system"]


def merge_image_items(items: Iterable[Item]) -> list[Item]:
    """Merge a user item that holds only images into the user item behind it; some clients send images that way."""
    merged: list[Item] = []
    for item in items:
        if merged and merged[-1].role == item.role == "user" and not (merged[-1].text or merged[-1].audio):
            merged[-1] = replace(item, parts=merged[-1].parts + item.parts)
        else:
            merged.append(item)
    return merged


def to_messages(
    conversation: Conversation, *, instructions: str | None = None, max_turns: int = 10, images: bool = True
) -> list[Message]:
    """The conversation as messages for OpenAI-compatible servers and chat templates.

    `instructions` replace the conversation's own. Images become data URIs; with `images` False they are left out.
    """
    system = conversation.instructions if instructions is None else instructions
    found: list[Message] = [{"role": "system", "content": system}] if system else []
    for item in recent_items(conversation, max_turns):
        found += _item_messages(item, images)
    return list(_pair_calls_with_results(found))


def _pair_calls_with_results(found: Iterable[Message]) -> Iterator[Message]:
    """Merge consecutive tool calls into one message and put their results directly behind it; strict servers check it.

    A call without a result, because the user spoke before the function returned, gets `PENDING_RESULT`. A result
    without its call is left out.
    """
    grouped: list[Message] = []
    results: dict[str, Message] = {}
    for message in found:
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
            pending = {"role": "tool", "tool_call_id": call["id"], "content": PENDING_RESULT}
            yield results.get(call["id"], pending)


def _item_messages(item: Item, images: bool) -> list[Message]:
    results: list[Message] = [
        {"role": "tool", "tool_call_id": part.call_id, "content": part.output} for part in item.parts_of(ToolResult)
    ]
    calls = [
        _tool_call(part) for part in item.parts_of(ToolCall) if item.status != "incomplete" or _is_json(part.arguments)
    ]
    if calls:
        # llama_cpp.server rejects None.
        return [{"role": "assistant", "content": item.text, "tool_calls": calls}, *results]
    if images and item.images:
        return [{"role": item.role, "content": _content_parts(item)}, *results]
    if item.text:
        return [{"role": item.role, "content": item.text}, *results]
    return results


def _tool_call(part: ToolCall) -> dict[str, Any]:
    return {
        "id": part.call_id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments or "{}"},
    }


def _is_json(text: str) -> bool:
    """Whether a call's arguments are complete. A response cancelled in the middle of them made no call.

    Servers parse the arguments and reject a request with broken ones.
    """
    try:
        orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return False
    return True


def _content_parts(item: Item) -> list[dict[str, Any]]:
    """Images before the text: models attend better to a question that follows its subject."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_uri(part.frame)}} for part in item.parts_of(ImagePart)
    ]
    if item.text:
        parts.append({"type": "text", "text": item.text})
    return parts


def data_uri(frame: ImageFrame) -> str:
    """The encoded image as a ``data:`` URI."""
    return f"data:{frame.media_type};base64,{base64.b64encode(frame.data).decode()}"


def nest_function(tool: dict[str, Any]) -> dict[str, Any]:
    """A function's description in the nested form of chat completions; the Realtime protocol's form is flat."""
    if "function" in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
