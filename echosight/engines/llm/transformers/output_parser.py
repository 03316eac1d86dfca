"""Splits a model's raw output into text for the user, tool calls, and reasoning, which is dropped.

Known formats: reasoning in ``<think>``, tool calls as Hermes models write them (``<tool_call>`` around JSON), and the
channels of gpt-oss (https://github.com/openai/harmony), of which only the final channel and the calls are kept. The
same task as vLLM's reasoning parsers and tool parsers.
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
MARKERS = (THINK, END_THINK, CALL, END_CALL, *HEADERS, MESSAGE, *ENDS)

ParsedChunk = TextChunk | ToolCallChunk


class OutputParser:
    """A state machine over the model's output, special tokens included: `feed` it deltas, then `flush`.

    `prompt` is the text that the output continues: a prompt that ends in an open ``<think>`` or ``<tool_call>`` makes
    the parser start in that state. `specials` are further tokens to drop from the text.
    """

    def __init__(self, prompt: str = "", specials: Iterable[str] = ()) -> None:
        self._markers = tuple({*MARKERS, *specials})
        self._state = "text"
        self._body = ""
        self._buffer = ""
        self._function = ""
        self._at_start = True
        if prompt.endswith(f"{HEADERS[0]}assistant"):
            self._state, self._body = "header", "assistant"
        for marker, state in ((THINK, "reasoning"), (CALL, "tool_call")):
            _, found, body = prompt.rpartition(marker)
            if found and not any(m in body for m in MARKERS) and _is_left_open(state, body):
                self._state, self._body = state, body

    def feed(self, text: str) -> list[ParsedChunk]:
        """The chunks that `text` completes. Text that may be the beginning of a marker is held back."""
        self._buffer += text
        chunks: list[ParsedChunk] = []
        while (found := self._find_marker()) is not None:
            index, marker = found
            chunks += self._consume(self._buffer[:index])
            self._buffer = self._buffer[index + len(marker) :]
            chunks += self._on_marker(marker)
        held = max((n for m in self._markers for n in range(1, len(m)) if self._buffer.endswith(m[:n])), default=0)
        end = len(self._buffer) - held
        chunks += self._consume(self._buffer[:end])
        self._buffer = self._buffer[end:]
        return chunks

    def flush(self) -> list[ParsedChunk]:
        """At the end of the output: the text that was held back, and a tool call without an end marker."""
        chunks = self._consume(self._buffer)
        self._buffer = ""
        return chunks + self._finish_call()

    def _find_marker(self) -> tuple[int, str] | None:
        """(index, marker) of the first marker in the buffer; the longest of those that begin there."""
        found = [(index, -len(marker), marker) for marker in self._markers if (index := self._buffer.find(marker)) >= 0]
        return (min(found)[0], min(found)[2]) if found else None

    def _consume(self, text: str) -> list[ParsedChunk]:
        if self._state != "text":
            self._body += text
            return []
        if self._at_start:
            text = text.lstrip()
        if not text:
            return []
        self._at_start = False
        return [TextChunk(text)]

    def _on_marker(self, marker: str) -> list[ParsedChunk]:
        if self._state == "header" and marker not in (MESSAGE, *ENDS):
            self._body += " "
            return []
        match marker:
            case "<think>":
                return self._enter("reasoning")
            case "<tool_call>":
                return self._enter("tool_call")
            case "<|start|>" | "<|channel|>":
                return self._enter("header")
            case "<|message|>" if self._state == "header":
                return self._on_header(self._body.split())
            case "</think>" | "</tool_call>" | "<|end|>" | "<|return|>" | "<|call|>":
                return self._enter("text")
        return []

    def _on_header(self, header: list[str]) -> list[ParsedChunk]:
        """gpt-oss: the header says whether the message is a function call, reasoning, or text for the user."""
        recipient = next((word[3:] for word in header if word.startswith("to=")), None)
        if recipient is not None:
            chunks = self._enter("function")
            self._function = recipient.removeprefix("functions.")
            return chunks
        return self._enter("reasoning" if "analysis" in header else "text")

    def _enter(self, state: str) -> list[ParsedChunk]:
        chunks = self._finish_call()
        self._at_start = self._at_start or self._state != "text"
        self._state, self._body = state, ""
        return chunks

    def _finish_call(self) -> list[ParsedChunk]:
        """The tool call that ends here, if the parser is in one."""
        state, body = self._state, self._body.strip()
        if state == "function":
            return [ToolCallChunk(new_id("call"), self._function, body)]
        if state != "tool_call" or not body:
            return []
        try:
            call = json.loads(body)
            name, arguments = str(call["name"]), call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("The model wrote a tool call that is not valid JSON; it is dropped")
            return []
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [ToolCallChunk(new_id("call"), name, text)]


def _is_left_open(state: str, body: str) -> bool:
    """Whether the prompt leaves its last marker for the model to continue; instructions may merely mention a marker."""
    return not body.strip() or (state == "tool_call" and body.lstrip().startswith('{"name": ') and body.endswith(": "))
