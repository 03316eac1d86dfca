"""The built-in demo chat: it repeats what was understood, says what plain statistics show of a picture, and no more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from echosight.conversation import Conversation, Item
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.messages import joined, recent
from echosight.engines.runtime.worker import Worker
from echosight.events import Usage
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.settings import Settings
from echosight.vision.statistics import describe, measure

_ASKS_BACK = re.compile(r"\bwhat (?:did|have) i (?:just )?(?:say|said|tell|told)\b", re.IGNORECASE)

INTRODUCTION = "I am the built-in demo, so I only repeat what I understand."
NOTHING = "I heard you, but I understood no words."


class EchoLLM:
    """A `LLM` that needs no model. It shows that microphone, camera, turn-taking and memory work."""

    name = "EchoSight demo"

    def __init__(self, max_history_turns: int = 10) -> None:
        self._max_history_turns = max_history_turns
        self._worker: Worker | None = None

    async def start(self) -> None:
        self._worker = Worker("pictures")

    async def close(self) -> None:
        if self._worker:
            await self._worker.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """There is nothing to compute ahead."""

    async def release(self, conversation_id: str) -> None:
        """There is nothing to forget."""

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Word by word, each a token as far as `max_output_tokens` is concerned."""
        talk = joined(recent(conversation, self._max_history_turns))
        said = [item for item in talk if item.role == "user"]
        limit = options.max_output_tokens
        tokens = 0
        async for sentence in self._sentences(said):
            for word in re.findall(r"\S+\s*", sentence + " "):
                if tokens == limit:
                    yield GenerationSummary(_usage(said, tokens), "length")
                    return
                yield TextChunk(word)
                tokens += 1
                # Gives way, as a model does between two tokens.
                await asyncio.sleep(0)
        yield GenerationSummary(_usage(said, tokens))

    async def _sentences(self, said: list[Item]) -> AsyncGenerator[str]:
        now = said[-1] if said else Item("user", ())
        before = said[:-1]
        last = next((item.text for item in reversed(before) if item.text), None)
        if _ASKS_BACK.search(now.text):
            yield f"Before that you said: {_closed(last)}" if last else "You said nothing before that."
            return
        if now.text:
            yield f"{'I heard' if now.audio else 'You wrote'}: {_closed(now.text)}"
        elif now.audio:
            yield NOTHING
        if now.images:
            yield await self._seen(now, before)
        if last:
            yield f"Before that you said: {_closed(last)}"
        elif not before:
            yield INTRODUCTION

    async def _seen(self, now: Item, before: list[Item]) -> str:
        """The newest picture, compared with the one before it."""
        frames: list[ImageFrame] = [frame for item in (*before, now) for frame in item.images][-2:]
        worker = self._worker
        assert worker, "start() comes first"
        try:
            sights = [await worker.call(lambda frame=frame: measure(frame)) for frame in frames]  # type: ignore[misc]
        except (OSError, ValueError):
            return "I was shown a picture, but I cannot read it."
        return describe(sights[-1], sights[-2] if len(sights) > 1 else None)


def chat(argument: str | None, settings: Settings) -> EchoLLM:
    """It has no model, so there is no argument."""
    return EchoLLM(settings.max_history_turns)


def _closed(text: str) -> str:
    """With a full stop, if it has no end of its own."""
    return text if text[-1:] in ".!?…。！？" else f"{text}."


def _usage(said: list[Item], output: int) -> Usage:
    return Usage(input_text=sum(len(item.text.split()) for item in said), output_text=output)
