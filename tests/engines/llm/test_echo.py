"""The built-in demo LLM and its image statistics."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncGenerator

import numpy as np
import pytest
from PIL import Image, ImageFilter

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart
from echosight.engines import GenerationSummary, TextChunk
from echosight.engines.llm.echo import HOW_TO_GET_A_MODEL, INTRODUCTION, NOTHING_UNDERSTOOD, EchoLLM
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.vision.statistics import describe, measure


@pytest.fixture
async def llm() -> AsyncGenerator[EchoLLM]:
    llm = EchoLLM(max_history_turns=2)
    await llm.start()
    yield llm
    await llm.close()


async def reply(
    llm: EchoLLM,
    *items: Item,
    options: GenerateOptions = GenerateOptions(),  # noqa: B008
) -> tuple[str, GenerationSummary]:
    chunks = [chunk async for chunk in llm.generate(Conversation(items=list(items)), options)]
    summary = chunks.pop()
    assert isinstance(summary, GenerationSummary)
    assert all(isinstance(chunk, TextChunk) and len(chunk.text.split()) == 1 for chunk in chunks)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)).strip(), summary


def spoken(text: str | None) -> Item:
    return Item("user", (AudioPart(None, transcript=text),))


def image_part(image: Image.Image, kind: str = "PNG") -> ImagePart:
    data = io.BytesIO()
    image.save(data, kind)
    return ImagePart(ImageFrame(data.getvalue(), f"image/{kind.lower()}", *image.size))


async def test_it_repeats_the_users_words_and_introduces_itself(llm: EchoLLM) -> None:
    text, summary = await reply(llm, spoken("hello world"))
    assert text == f"I heard: hello world. {INTRODUCTION}"
    assert summary.usage.output_text == len(text.split())
    assert (await reply(llm, Item("user", (TextPart("hello?"),))))[0] == f"You wrote: hello? {INTRODUCTION}"


async def test_it_says_that_it_understood_no_words(llm: EchoLLM) -> None:
    for nothing in ("", None):
        assert (await reply(llm, spoken(nothing)))[0].startswith(NOTHING_UNDERSTOOD)


async def test_it_knows_the_time_and_how_to_get_a_model(llm: EchoLLM) -> None:
    for question in ("What time is it?", "what's the time", "What is the time please?"):
        text, _ = await reply(llm, spoken(question))
        assert re.search(r"It is \d\d:\d\d here\.", text)
    text, _ = await reply(llm, spoken("How do I get a real model?"))
    assert HOW_TO_GET_A_MODEL in text
    text, _ = await reply(llm, spoken("I had a good time."))
    assert "It is" not in text


async def test_it_remembers_the_previous_turn(llm: EchoLLM) -> None:
    first, response, second = spoken("red"), Item("assistant", (TextPart("…"),)), spoken("blue")
    assert (await reply(llm, first, response, second))[0] == "I heard: blue. Before that you said: red."
    question = spoken("what did i say before")
    assert (await reply(llm, first, response, question))[0] == "Before that you said: red."
    assert (await reply(llm, question))[0] == "You said nothing before that."


async def test_it_sees_only_the_last_turns() -> None:
    llm = EchoLLM(max_history_turns=1)
    assert "red" not in (await reply(llm, spoken("red"), spoken("blue")))[0]


async def test_it_stops_at_the_token_limit(llm: EchoLLM) -> None:
    text, summary = await reply(llm, spoken("one two three"), options=GenerateOptions(max_output_tokens=3))
    assert text == "I heard: one"
    assert (summary.finish, summary.usage.output_text) == ("length", 3)


async def test_it_describes_the_image(llm: EchoLLM) -> None:
    item = Item("user", (image_part(Image.new("RGB", (640, 480), (20, 60, 230)), "JPEG"),))
    text, _ = await reply(llm, item)
    assert text.startswith("The picture is 640 by 480 pixels")
    assert "mostly blue" in text


async def test_it_compares_with_the_previous_image(llm: EchoLLM) -> None:
    black, white = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")
    half = black.copy()
    half.paste(white.crop((0, 0, 32, 64)))
    assert "Nothing moved" in (await reply(llm, Item("user", (image_part(black), image_part(black)))))[0]
    earlier, current = Item("user", (image_part(black),)), Item("user", (image_part(half),))
    assert "About 50 percent of it changed" in (await reply(llm, earlier, current))[0]


async def test_a_damaged_image_does_not_fail_the_reply(llm: EchoLLM) -> None:
    part = ImagePart(ImageFrame(b"\x89PNG nothing", "image/png", 3, 3))
    text, _ = await reply(llm, Item("user", (TextPart("look"), part)))
    assert "I cannot read it" in text


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((220, 20, 20), "red"),
        ((240, 140, 20), "orange"), ((110, 60, 15), "brown"), ((230, 220, 30), "yellow"), ((20, 180, 40), "green"),
        ((30, 200, 200), "turquoise"), ((20, 60, 230), "blue"), ((130, 20, 230), "purple"), ((250, 80, 180), "pink"),
    ],
)  # fmt: skip
def test_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert measure(image_part(Image.new("RGB", (40, 30), rgb)).frame).colours == (name,)


def test_two_colours_are_named_by_their_share() -> None:
    image = Image.new("RGB", (100, 100), (20, 180, 40))
    image.paste((20, 60, 230), (0, 0, 100, 40))
    assert measure(image_part(image).frame).colours == ("green", "blue")


def test_brightness_and_sharpness_order_images() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    scene = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)).resize((800, 600))
    sharpness = [measure(image_part(scene.filter(ImageFilter.GaussianBlur(r))).frame).sharpness for r in (0, 3, 12)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert "very dark" in describe(measure(image_part(Image.new("L", (9, 9), 10)).frame))
    assert "very bright" in describe(measure(image_part(Image.new("RGBA", (9, 9), (250, 250, 250, 255))).frame))


def test_tiny_and_flat_images_can_be_measured() -> None:
    assert "1 by 1 pixels" in describe(measure(image_part(Image.new("L", (1, 1))).frame))
    assert measure(image_part(Image.new("1", (2, 5000))).frame).height == 5000


async def test_an_image_in_an_item_of_its_own_is_seen(llm: EchoLLM) -> None:
    red = Item("user", (image_part(Image.new("RGB", (64, 48), "red")),))
    text, _ = await reply(llm, red, Item("user", (TextPart("what is this"),)))
    assert "red" in text
