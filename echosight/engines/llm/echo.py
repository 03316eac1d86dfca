"""The built-in demo LLM: it repeats the user's words and describes images by plain statistics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator

from echosight.conversation import Conversation, Item
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.messages import merge_image_items, recent_items
from echosight.engines.runtime.worker import Worker
from echosight.events import Usage
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.settings import Settings
from echosight.vision.statistics import describe, measure

_ASKS_FOR_LAST_WORDS = re.compile(r"\bwhat (?:did|have) i (?:just )?(?:say|said|tell|told)\b", re.IGNORECASE)

_ASKS_FOR_TIME = re.compile(r"\bwhat(?:'s| is)? (?:the )?time\b|\btime is it\b", re.IGNORECASE)
_ASKS_FOR_MODEL = re.compile(r"\b(?:real|other|better|another|language) models?\b", re.IGNORECASE)

HOW_TO_GET_A_MODEL = (
    "Start me again with the option --model and a Hugging Face id, a GGUF file or the address of a server; "
    "the README lists what works."
)
INTRODUCTION = "I am the built-in demo, so I only repeat what I understand."
NOTHING_UNDERSTOOD = "I heard you, but I understood no words."


class EchoLLM:
    """An `LLM` without a model. It shows that microphone, camera, turn-taking and history work."""

    name = "EchoSight demo"

    def __init__(self, max_history_turns: int = 10) -> None:
        self._max_history_turns = max_history_turns
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Start the thread that measures images."""
        self._worker = Worker("images")

    async def close(self) -> None:
        """End the thread."""
        if self._worker:
            await self._worker.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Does nothing: a reply costs almost nothing to compute."""

    async def release(self, conversation_id: str) -> None:
        """Does nothing: there is no cache."""

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Word by word; each word counts as a token of `max_output_tokens`."""
        items = merge_image_items(recent_items(conversation, self._max_history_turns))
        user_items = [item for item in items if item.role == "user"]
        limit = options.max_output_tokens
        tokens = 0
        async for sentence in self._sentences(user_items):
            for word in re.findall(r"\S+\s*", sentence + " "):
                if tokens == limit:
                    yield GenerationSummary(_usage(user_items, tokens), "length")
                    return
                yield TextChunk(word)
                tokens += 1
                # Let other tasks run between two tokens, as a real model does.
                await asyncio.sleep(0)
        yield GenerationSummary(_usage(user_items, tokens))

    async def _sentences(self, user_items: list[Item]) -> AsyncGenerator[str]:
        current = user_items[-1] if user_items else Item("user", ())
        earlier = user_items[:-1]
        last_text = next((item.text for item in reversed(earlier) if item.text), None)
        if _ASKS_FOR_LAST_WORDS.search(current.text):
            yield f"Before that you said: {_closed(last_text)}" if last_text else "You said nothing before that."
            return
        if current.text:
            yield f"{'I heard' if current.audio else 'You wrote'}: {_closed(current.text)}"
            if _ASKS_FOR_TIME.search(current.text):
                yield f"It is {time.strftime('%H:%M')} here."
            if _ASKS_FOR_MODEL.search(current.text):
                yield HOW_TO_GET_A_MODEL
        elif current.audio:
            yield NOTHING_UNDERSTOOD
        if current.images:
            yield await self._describe_images(current, earlier)
        if last_text:
            yield f"Before that you said: {_closed(last_text)}"
        elif not earlier:
            yield INTRODUCTION

    async def _describe_images(self, current: Item, earlier: list[Item]) -> str:
        """The newest image, compared with the one before it."""
        frames: list[ImageFrame] = [frame for item in (*earlier, current) for frame in item.images][-2:]
        worker = self._worker
        assert worker, "start() comes first"
        try:
            stats = [await worker.call(lambda frame=frame: measure(frame)) for frame in frames]  # type: ignore[misc]
        except (OSError, ValueError):
            return "I was shown a picture, but I cannot read it."
        return describe(stats[-1], stats[-2] if len(stats) > 1 else None)


def make_llm(argument: str | None, settings: Settings) -> EchoLLM:
    """The demo LLM. It has no model, so it ignores `argument`."""
    return EchoLLM(settings.max_history_turns)


def _closed(text: str) -> str:
    """The text with a full stop, unless it ends in a punctuation mark already."""
    return text if text[-1:] in ".!?…。！？" else f"{text}."


def _usage(user_items: list[Item], output: int) -> Usage:
    return Usage(input_text=sum(len(item.text.split()) for item in user_items), output_text=output)
