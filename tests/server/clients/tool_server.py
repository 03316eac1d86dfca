"""The real server with its own STT and TTS, and a scripted LLM that calls functions and tells long stories."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import echosight.app
import model_server
from echosight.conversation import Conversation, Item, ToolResult, new_id
from echosight.engines import Engine, GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.llm.echo import EchoLLM
from echosight.engines.stt.sphinx import SphinxSTT
from echosight.engines.tts.espeak import EspeakTTS
from echosight.options import GenerateOptions
from echosight.settings import Settings

STORY_WORDS = 80


class ToolLLM(EchoLLM):
    """Calls the first of its functions, repeats the result, and is an `EchoLLM` otherwise."""

    name = "tool chat"

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        last = conversation.items[-1] if conversation.items else Item("user", ())
        tools = conversation.tools if options.tools is None else options.tools
        results = list(last.parts_of(ToolResult))
        if results:
            yield TextChunk(f"The function said: {results[0].output}.")
        elif tools and "weather" in last.text:
            call_id = new_id("call")
            for arguments in ('{"place"', ': "here"}'):
                yield ToolCallChunk(call_id, tools[0]["name"], arguments)
        elif "story" in conversation.instructions and len([i for i in conversation if i.role == "user"]) == 1:
            for number in range(STORY_WORDS):
                yield TextChunk(f"word {number}. ")
                await asyncio.sleep(0.05)
        else:
            async for piece in super().generate(conversation, options):
                yield piece


def engine(settings: Settings) -> Engine:
    return Cascade(SphinxSTT(1), ToolLLM(), EspeakTTS(), capacity=32)


if __name__ == "__main__":
    echosight.app.load = engine  # type: ignore[attr-defined]
    model_server.main()
