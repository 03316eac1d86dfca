"""A Hugging Face model as a chat, in this process: it reads while the user speaks, and what it has read it keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echosight.conversation import Conversation
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.prompt import Request
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.progress import LoadProgress, report
from echosight.engines.runtime.worker import Worker
from echosight.errors import EchoSightError, EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

if TYPE_CHECKING:
    from echosight.engines.llm.transformers.generator import Author

CACHE_SHARE = 0.5
"""Part of the memory left beside the weights that conversations may take."""


class TransformersLLM:
    """A `LLM`. `build` loads the model, in the thread that then owns it; `seed` makes replies repeatable."""

    def __init__(self, name: str, build: Callable[[], Author], *, seed: int | None = None) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self._build = build
        self._seed = seed
        self._worker = Worker("chat")
        self._author: Author
        self._said: dict[str, str] = {}
        self._reading: set[str] = set()

    async def start(self) -> None:
        self._author = await self._worker.call(lambda: self.loading.run(self._build))

    async def close(self) -> None:
        await self._worker.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Read what the user has been heard to say twice in a row, and the pictures of the turn."""
        before = self._said.get(conversation.id, "")
        self._said[conversation.id] = text
        turn, sure = conversation.pending_turn, _common_words(before, text)
        if turn is None or not sure or conversation.id in self._reading:
            return
        item = turn.to_item(sure)
        ahead = replace(conversation, items=[*conversation.items, item], pending_turn=None)
        request = Request(ahead, _system(conversation, conversation.instructions), conversation.tools)
        self._reading.add(conversation.id)
        try:
            with _failures():
                async with aclosing(self._worker.stream(lambda: self._author.read_ahead(request, item.text))) as steps:
                    async for _ in steps:
                        pass
        finally:
            self._reading.discard(conversation.id)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """A step of the model whenever a piece is asked for. Raises `EngineFailure`."""
        self._said.pop(conversation.id, None)
        request = self._request(conversation, options)
        author, seed = self._author, self._seed

        def begin() -> Generator[list[TextChunk | ToolCallChunk | GenerationSummary], None, None]:
            return author.write(request, options, seed)

        with _failures():
            async with aclosing(self._worker.stream(begin)) as steps:
                async for pieces in steps:
                    for piece in pieces:
                        yield piece

    async def release(self, conversation_id: str) -> None:
        self._said.pop(conversation_id, None)
        await self._worker.call(lambda: self._author.forget(conversation_id))

    def _request(self, conversation: Conversation, options: GenerateOptions) -> Request:
        instructions = conversation.instructions if options.instructions is None else options.instructions
        # The caller may add to the list while the model's thread reads it.
        now = replace(conversation, items=[*conversation.items], pending_turn=None)
        system = _system(replace(conversation, language=options.language or conversation.language), instructions)
        tools = conversation.tools if options.tools is None else options.tools
        choice = options.tool_choice
        if choice == "none" or not tools:
            return Request(now, system)
        return Request(now, system, tools, self._forced(choice))

    def _forced(self, choice: str | dict[str, Any]) -> str:
        """How a reply begins that has to be a function call."""
        if choice == "auto" or not self._author.template.calls_in_tags:
            return ""
        named = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
        return "<tool_call>\n" + (f'{{"name": "{named}", "arguments": ' if named else "")


@contextmanager
def _failures() -> Iterator[None]:
    """What breaks in a model, or in its chat template, which is a program of its makers, fails the turn only."""
    try:
        yield
    except EchoSightError:
        raise
    except Exception as error:
        raise EngineFailure(f"The model failed: {error}") from error


def chat(argument: str | None, settings: Settings) -> TransformersLLM:
    """`argument`: a Hugging Face id or a folder. Raises `SetupError`."""
    source = argument or settings.model
    if not source:
        raise SetupError("A model in this process needs a name: --model Qwen/Qwen2.5-7B-Instruct")
    require_extra("A model in this process", "torch", "transformers", extra="local", flag=f"--model {source}")
    turns, device = settings.max_history_turns, settings.device
    return TransformersLLM(Path(source).name or source, lambda: build_author(source, turns, device))


def build_author(source: str, max_turns: int = 10, device: str = "auto") -> Author:
    """The model at `source`. Raises `SetupError`."""
    report("libraries")
    from echosight.engines.llm.transformers.checkpoint import FILES, read_checkpoint
    from echosight.engines.llm.transformers.generator import Author
    from echosight.engines.runtime.huggingface.device import choose_device
    from echosight.engines.runtime.huggingface.memory import free_bytes
    from echosight.engines.runtime.huggingface.source import fetch

    device = choose_device(device)
    folder = fetch(source, FILES)
    checkpoint = read_checkpoint(source, folder, device)
    return Author(checkpoint, max_turns, int(free_bytes(device) * CACHE_SHARE))


def _system(conversation: Conversation, instructions: str) -> str:
    language = f"Answer in the language {conversation.language}." if conversation.language else ""
    return "\n".join(line for line in (instructions, language) if line)


def _common_words(before: str, now: str) -> str:
    """What two texts in a row agree on, in whole words (LocalAgreement-2, Macháček et al. 2023)."""
    old, new = before.split(), now.split()
    agreed = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return " ".join(new[:agreed])
