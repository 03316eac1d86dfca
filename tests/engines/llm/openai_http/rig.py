"""Short forms of conversations, requests and replies."""

from __future__ import annotations

from typing import Any

from echosight.conversation import Conversation, Item, TextPart
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.openai_http import OpenAILLM
from echosight.options import GenerateOptions
from tests.engines.upstream import counted, finished, sse, text

CHAT = "/v1/chat/completions"
HELLO = sse(text("Hel"), text("lo."), finished(), counted(7, 2, 5))
OPTIONS = GenerateOptions()


def conversation_of(*texts: str) -> Conversation:
    return Conversation(instructions="Be brief.", items=[Item("user", (TextPart(text),)) for text in texts])


async def ask(
    llm: OpenAILLM, conversation: Conversation | None = None, options: GenerateOptions = OPTIONS
) -> list[TextChunk | ToolCallChunk | GenerationSummary]:
    return [chunk async for chunk in llm.generate(conversation or conversation_of("Hi"), options)]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
