"""A model's raw output is parsed the same way however it is cut into deltas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.engines import TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.output_parser import OutputParser

Parsed = tuple[str, list[tuple[str, str]]]

CASES: dict[str, tuple[str, str, Parsed]] = {
    "plain": ("", "Hello there. 1 < 2 <b>", ("Hello there. 1 < 2 <b>", [])),
    "thoughts": ("", "<think>\nhm\n</think>\n\nYes.", ("Yes.", [])),
    "thoughts begun by the prompt": ("<|im_start|>assistant\n<think>\n", "hm</think>\n\nYes.", ("Yes.", [])),
    "ended thoughts": ("<think>\n\n</think>\n\n", "Yes.", ("Yes.", [])),
    "call": (
        "",
        'I look.\n<tool_call>\n{"name": "see", "arguments": {"far": true}}\n</tool_call>',
        ("I look.\n", [("see", '{"far": true}')]),
    ),
    "two calls": (
        "",
        '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b", "arguments": ""}</tool_call>',
        ("", [("a", "{}"), ("b", "")]),
    ),
    "call begun by the prompt": ("<tool_call>\n", '{"name": "a", "arguments": {}}</tool_call>', ("", [("a", "{}")])),
    "call left open": ("", '<tool_call>{"name": "a", "arguments": {}}', ("", [("a", "{}")])),
    "broken call": ("", "<tool_call>{oops</tool_call>Sorry.", ("Sorry.", [])),
    "mention of calls": ("Use <tool_call> to call. Hi.", "Hello", ("Hello", [])),
    "harmony": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>User greets.<|end|><|start|>assistant<|channel|>final<|message|>Hi!<|return|>",
        ("Hi!", []),
    ),
    "harmony call": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary to=functions.see "
        '<|constrain|>json<|message|>{"far": true}<|call|>',
        ("", [("see", '{"far": true}')]),
    ),
    "harmony call, addressed first": (
        "<|start|>assistant",
        ' to=functions.see<|channel|>commentary json<|message|>{"far": 1}<|call|>',
        ("", [("see", '{"far": 1}')]),
    ),
    "specials": ("", "Hi<|im_end|> you<|other|>", ("Hi you", [])),
}


def parse(prompt: str, texts: list[str]) -> Parsed:
    parser = OutputParser(prompt, ["<|im_end|>", "<|other|>", "<|constrain|>"])
    chunks = [chunk for text in texts for chunk in parser.feed(text)] + parser.flush()
    calls = [(chunk.name, chunk.arguments) for chunk in chunks if isinstance(chunk, ToolCallChunk)]
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), calls


@pytest.mark.parametrize("case", CASES)
def test_text_calls_and_reasoning_are_separated(case: str) -> None:
    prompt, output, expected = CASES[case]
    assert parse(prompt, [output]) == expected
    assert parse(prompt, [*output]) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "<|channel|>final<|message|>", "a", " <", "|"])))
def test_cuts_make_no_difference(parts: list[str]) -> None:
    output = "".join(parts)
    assert parse("", [*output]) == parse("", parts) == parse("", [output])
