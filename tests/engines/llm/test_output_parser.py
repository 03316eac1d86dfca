"""What a model writes, taken apart, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.engines import TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.output_parser import Markup

Said = tuple[str, list[tuple[str, str]]]

CASES: dict[str, tuple[str, str, Said]] = {
    "plain": ("", "Hello there. 1 < 2 <b>", ("Hello there. 1 < 2 <b>", [])),
    "thoughts": ("", "<think>\nhm\n</think>\n\nYes.", ("Yes.", [])),
    "begun thoughts": ("<|im_start|>assistant\n<think>\n", "hm</think>\n\nYes.", ("Yes.", [])),
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
    "begun call": ("<tool_call>\n", '{"name": "a", "arguments": {}}</tool_call>', ("", [("a", "{}")])),
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


def read(prompt: str, pieces: list[str]) -> Said:
    markup = Markup(prompt, ["<|im_end|>", "<|other|>", "<|constrain|>"])
    made = [piece for text in pieces for piece in markup.feed(text)] + markup.finish()
    calls = [(piece.name, piece.arguments) for piece in made if isinstance(piece, ToolCallChunk)]
    return "".join(piece.text for piece in made if isinstance(piece, TextChunk)), calls


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_apart(case: str) -> None:
    prompt, written, expected = CASES[case]
    assert read(prompt, [written]) == expected
    assert read(prompt, [*written]) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "<|channel|>final<|message|>", "a", " <", "|"])))
def test_cuts_make_no_difference(parts: list[str]) -> None:
    written = "".join(parts)
    assert read("", [*written]) == read("", parts) == read("", [written])
