"""What a model writes, taken apart: what it says, which functions it calls, and what it only thinks.

Understood are thoughts in ``<think>``, calls as Hermes models write them (``<tool_call>`` around JSON), and the
channels of gpt-oss (https://github.com/openai/harmony): only its final words and its calls leave the model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from echosight.conversation import new_id
from echosight.engines import TextChunk, ToolCallChunk

log = logging.getLogger(__name__)

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
HEADERS = ("<|start|>", "<|channel|>")
MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
MARKS = (THINK, END_THINK, CALL, END_CALL, *HEADERS, MESSAGE, *ENDS)


class Markup:
    """Feed it what the model writes, special tokens included. `prompt` is what it continues; a model may be made to
    think, or to call a function, by a prompt that ends with the mark for it.
    """

    def __init__(self, prompt: str = "", specials: Iterable[str] = ()) -> None:
        self._marks = tuple({*MARKS, *specials})
        self._state = "say"
        self._body = ""
        self._rest = ""
        self._function = ""
        self._blank = True
        if prompt.endswith(f"{HEADERS[0]}assistant"):
            self._state, self._body = "header", "assistant"
        for mark, state in ((THINK, "think"), (CALL, "call")):
            _, found, begun = prompt.rpartition(mark)
            if found and not any(m in begun for m in MARKS) and _is_begun(state, begun):
                self._state, self._body = state, begun

    def feed(self, text: str) -> list[TextChunk | ToolCallChunk]:
        self._rest += text
        pieces: list[TextChunk | ToolCallChunk] = []
        while (found := self._next_mark()) is not None:
            at, mark = found
            pieces += self._take(self._rest[:at])
            self._rest = self._rest[at + len(mark) :]
            pieces += self._enter(mark)
        held = max((n for m in self._marks for n in range(1, len(m)) if self._rest.endswith(m[:n])), default=0)
        end = len(self._rest) - held
        pieces += self._take(self._rest[:end])
        self._rest = self._rest[end:]
        return pieces

    def finish(self) -> list[TextChunk | ToolCallChunk]:
        """What was held back because it looked like the beginning of a mark, and a call that was left open."""
        pieces = self._take(self._rest)
        self._rest = ""
        return pieces + self._call()

    def _next_mark(self) -> tuple[int, str] | None:
        found = [(at, -len(mark), mark) for mark in self._marks if (at := self._rest.find(mark)) >= 0]
        return (min(found)[0], min(found)[2]) if found else None

    def _take(self, text: str) -> list[TextChunk | ToolCallChunk]:
        if self._state != "say":
            self._body += text
            return []
        if self._blank:
            text = text.lstrip()
        if not text:
            return []
        self._blank = False
        return [TextChunk(text)]

    def _enter(self, mark: str) -> list[TextChunk | ToolCallChunk]:
        if self._state == "header" and mark not in (MESSAGE, *ENDS):
            self._body += " "
            return []
        match mark:
            case "<think>":
                return self._go("think")
            case "<tool_call>":
                return self._go("call")
            case "<|start|>" | "<|channel|>":
                return self._go("header")
            case "<|message|>" if self._state == "header":
                return self._address(self._body.split())
            case "</think>" | "</tool_call>" | "<|end|>" | "<|return|>" | "<|call|>":
                return self._go("say")
        return []

    def _address(self, header: list[str]) -> list[TextChunk | ToolCallChunk]:
        """Whom the message is for: a function, the user, or the model itself."""
        recipient = next((word[3:] for word in header if word.startswith("to=")), None)
        if recipient is not None:
            pieces = self._go("function")
            self._function = recipient.removeprefix("functions.")
            return pieces
        return self._go("think" if "analysis" in header else "say")

    def _go(self, state: str) -> list[TextChunk | ToolCallChunk]:
        pieces = self._call()
        self._blank = self._blank or self._state != "say"
        self._state, self._body = state, ""
        return pieces

    def _call(self) -> list[TextChunk | ToolCallChunk]:
        """The call that ends here."""
        state, body = self._state, self._body.strip()
        if state == "function":
            return [ToolCallChunk(new_id("call"), self._function, body)]
        if state != "call" or not body:
            return []
        try:
            call = json.loads(body)
            name, arguments = str(call["name"]), call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("The model wrote a function call that cannot be read")
            return []
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [ToolCallChunk(new_id("call"), name, written)]


def _is_begun(state: str, begun: str) -> bool:
    """Whether a prompt's last mark is meant for the model to go on with, and is not part of what it was told."""
    return not begun.strip() or (state == "call" and begun.lstrip().startswith('{"name": ') and begun.endswith(": "))
