"""Sentences cut out of a stream of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.engines.cascade.sentences import MAX_CHARS, SentenceSplitter, strip_markup


def split(text: str, size: int = 1) -> list[str]:
    splitter = SentenceSplitter()
    sentences = [s for start in range(0, len(text), size) for s in splitter.push(text[start : start + size])]
    sentences += splitter.flush()
    assert all(text[s.start :].startswith(s.text) for s in sentences)
    return [s.text for s in sentences]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rained all day. Then it stopped.", ["It rained all day.", "Then it stopped."]),
        ("Dr. No paid 3.50 dollars to J. R. Doe. He left.", ["Dr. No paid 3.50 dollars to J. R. Doe.", "He left."]),
        ("See e.g. the U.S. Navy. Impressive stuff.", ["See e.g. the U.S. Navy.", "Impressive stuff."]),
        ("So am I. We both are here.", ["So am I.", "We both are here."]),
        ('He said "Stop!" Nobody listened.', ['He said "Stop!"', "Nobody listened."]),
        ("Is it? Yes. It is so. Of course it is!", ["Is it?", "Yes. It is so.", "Of course it is!"]),
        ("Hm... let me think about it.", ["Hm...", "let me think about it."]),
        ("今天天气很好。我们去公园吧！好吗？", ["今天天气很好。", "我们去公园吧！", "好吗？"]),
        ("All:\n1. Bring the apples\n2. Bring the pears", ["All:", "1. Bring the apples", "2. Bring the pears"]),
        ("A title\n\nAnd the text of it", ["A title", "And the text of it"]),
        ("No end here", ["No end here"]),
        (" ... !", []),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


def test_the_first_sentence_may_end_at_a_comma_and_later_ones_may_not() -> None:
    text = "When the long winter was over, the birds came back. When the summer was over, they left again."
    assert split(text) == [
        "When the long winter was over,",
        "the birds came back.",
        "When the summer was over, they left again.",
    ]


def test_a_sentence_comes_as_soon_as_it_is_complete() -> None:
    splitter = SentenceSplitter()
    assert splitter.push("One is here.") == []  # it might be "here.abouts"
    assert [s.text for s in splitter.push(" Two")] == ["One is here."]


def test_a_long_sentence_is_cut_at_a_space() -> None:
    sentences = split("word " * 200)
    assert len(sentences) > 2
    assert all(len(s) <= MAX_CHARS and s.startswith("word") and s.endswith("word") for s in sentences)


@given(st.text(alphabet="ab .,!?…\n1-。，\"'", max_size=600), st.integers(1, 40))
def test_no_letter_or_digit_is_lost(text: str, size: int) -> None:
    spoken = "".join(split(text, size))
    assert [c for c in spoken if c.isalnum()] == [c for c in text if c.isalnum()]


@given(st.text())
def test_stripping_markup_leaves_every_other_character_in_its_place(text: str) -> None:
    spoken = strip_markup(text)
    assert len(spoken) == len(text)
    assert all(a == b or b == " " for a, b in zip(text, spoken, strict=True))


def test_markdown_and_emoji_are_not_spoken() -> None:
    assert strip_markup("**Yes** 😀 `x`").split() == ["Yes", "x"]


def test_the_token_for_a_tone_is_not_spoken_and_keeps_its_place() -> None:
    splitter = SentenceSplitter()
    sentences = [*splitter.push("[BEEP] Your alarm is set. [BEEP] "), *splitter.flush()]
    assert [(sentence.start, strip_markup(sentence.text)) for sentence in sentences] == [
        (0, "       Your alarm is set.")
    ]
