"""Short forms of conversations, requests and replies."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from PIL import Image

from echosight.conversation import Conversation, ImagePart, Item, TextPart
from echosight.engines import GenerationSummary, TextChunk
from echosight.engines.llm.transformers.checkpoint import Checkpoint
from echosight.engines.llm.transformers.generator import TextGenerator
from echosight.engines.llm.transformers.prompt import PromptRequest
from echosight.media import ImageFrame
from echosight.options import GenerateOptions

SHORT = GenerateOptions(max_output_tokens=12, temperature=0.0)
WEATHER = {"type": "function", "name": "weather", "description": "", "parameters": {"type": "object"}}


def make_generator(checkpoint: Checkpoint, *, max_turns: int = 10, limit_bytes: int = 1 << 30) -> TextGenerator:
    """A generator without stop tokens: random weights would end replies at any length."""
    return TextGenerator(replace(checkpoint, stop_tokens=frozenset()), max_turns, limit_bytes)


def image_part(grain: int) -> ImagePart:
    data = io.BytesIO()
    Image.effect_noise((90, 120), grain).convert("RGB").save(data, "PNG")
    return ImagePart(ImageFrame(data.getvalue(), "image/png", 90, 120))


def user(text: str, *parts: Any) -> Item:
    return Item("user", (TextPart(text), *parts))


def assistant(text: str) -> Item:
    return Item("assistant", (TextPart(text),))


def conversation_of(kind: str, turns: int = 3) -> Conversation:
    """A conversation that ends with the user's turn; for vision models, each user turn has an image."""
    conversation = Conversation(instructions="Answer in one sentence.")
    for n in range(turns):
        images = (image_part(20 + n),) if kind == "qwen_vl" else ()
        conversation.add(user(f"hello {n}, how are you today and what do you see in this room?", *images))
        if n < turns - 1:
            conversation.add(assistant("the quick brown fox"))
    return conversation


def request(conversation: Conversation, **more: Any) -> PromptRequest:
    return PromptRequest(conversation, conversation.instructions, **more)


def generate(
    generator: TextGenerator, conversation: Conversation, options: GenerateOptions = SHORT
) -> tuple[str, GenerationSummary]:
    chunks = [chunk for step in generator.generate(request(conversation), options) for chunk in step]
    summary = chunks[-1]
    assert isinstance(summary, GenerationSummary)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), summary


def first_items(conversation: Conversation, items: int) -> Conversation:
    return replace(conversation, items=conversation.items[:items])
