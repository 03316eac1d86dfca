import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.engines.cascade.sentences import MAX_CHARS, Splitter, speakable


def split(text: str, size: int = 1) -> list[str]:
    splitter = Splitter()
    sentences = [s for at in range(0, len(text), size) for s in splitter.feed(text[at : at + size])]
    sentences += splitter.finish()
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


def test_the_first_piece_may_end_at_a_comma_and_later_ones_may_not() -> None:
    text = "When the long winter was over, the birds came back. When the summer was over, they left again."
    assert split(text) == [
        "When the long winter was over,",
        "the birds came back.",
        "When the summer was over, they left again.",
    ]


def test_a_sentence_is_given_as_soon_as_it_is_complete() -> None:
    splitter = Splitter()
    assert splitter.feed("One is here.") == []  # it might be "here.abouts"
    assert [s.text for s in splitter.feed(" Two")] == ["One is here."]


def test_a_long_sentence_is_cut_at_a_space() -> None:
    pieces = split("word " * 200)
    assert len(pieces) > 2
    assert all(len(piece) <= MAX_CHARS and piece.startswith("word") and piece.endswith("word") for piece in pieces)


@given(st.text(alphabet="ab .,!?…\n1-。，\"'", max_size=600), st.integers(1, 40))
def test_nothing_that_can_be_said_is_lost(text: str, size: int) -> None:
    said = "".join(split(text, size))
    assert [c for c in said if c.isalnum()] == [c for c in text if c.isalnum()]


@given(st.text())
def test_what_is_not_spoken_leaves_every_character_in_its_place(text: str) -> None:
    spoken = speakable(text)
    assert len(spoken) == len(text)
    assert all(a == b or b == " " for a, b in zip(text, spoken, strict=True))


def test_marks_and_pictures_are_not_spoken() -> None:
    assert speakable("**Yes** 😀 `x`").split() == ["Yes", "x"]


def test_the_token_for_a_tone_is_not_spoken_and_keeps_its_place() -> None:
    splitter = Splitter()
    sentences = [*splitter.feed("[BEEP] Your alarm is set. [BEEP] "), *splitter.finish()]
    assert [(sentence.start, speakable(sentence.text)) for sentence in sentences] == [(0, "       Your alarm is set.")]
