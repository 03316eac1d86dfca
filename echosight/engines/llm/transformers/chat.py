"""A Hugging Face model as an LLM in this process; it computes the prompt while the user still speaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echosight.conversation import Conversation
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.prompt import PromptRequest
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.progress import LoadProgress, report
from echosight.engines.runtime.worker import Worker
from echosight.errors import CannotSee, EchoSightError, EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

if TYPE_CHECKING:
    from echosight.engines.llm.transformers.generator import TextGenerator

KV_CACHE_SHARE = 0.5
"""Share of the memory that is free after loading which KV caches may take."""


class TransformersLLM:
    """An `LLM`. `build` loads the model in the thread that then owns it; `seed` makes replies repeatable."""

    def __init__(self, name: str, build: Callable[[], TextGenerator], *, seed: int | None = None) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self._build = build
        self._seed = seed
        self._worker = Worker("chat")
        self._loaded: TextGenerator | None = None
        self._partials: dict[str, str] = {}
        """Conversation id -> the last partial transcript."""
        self._prefilling: set[str] = set()

    async def start(self) -> None:
        """Load the model. Raises `SetupError`."""
        self._loaded = await self._worker.call(lambda: self.loading.run(self._build))

    async def close(self) -> None:
        """End the model's thread and free the model."""
        await self._worker.close()
        self._loaded = None

    @property
    def _generator(self) -> TextGenerator:
        if self._loaded is None:
            raise EngineFailure(f"{self.name} is not started")
        return self._loaded

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Compute the prompt up to the words on which the last two partial transcripts agree.

        Raises `EngineFailure`. Returns at once while a prefill of the same conversation is running.
        """
        before = self._partials.get(conversation.id, "")
        self._partials[conversation.id] = text
        turn, stable = conversation.pending_turn, _common_words(before, text)
        if turn is None or not stable or conversation.id in self._prefilling:
            return
        item = turn.to_item(stable)
        extended = replace(conversation, items=[*conversation.items, item], pending_turn=None)
        request = PromptRequest(extended, _system(conversation, conversation.instructions), conversation.tools)
        self._prefilling.add(conversation.id)
        try:
            with _engine_failures():
                async with aclosing(self._worker.stream(lambda: self._generator.prefill(request, item.text))) as steps:
                    async for _ in steps:
                        pass
        finally:
            self._prefilling.discard(conversation.id)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """The model makes one step for each chunk that is read. Raises `EngineFailure` and `CannotSee`."""
        if options.require_images and self._generator.template.image_token is None:
            raise CannotSee(f"{self.name} takes no images")
        self._partials.pop(conversation.id, None)
        request = self._request(conversation, options)
        generator, seed = self._generator, self._seed

        def start() -> Generator[list[TextChunk | ToolCallChunk | GenerationSummary], None, None]:
            return generator.generate(request, options, seed)

        with _engine_failures():
            async with aclosing(self._worker.stream(start)) as steps:
                async for chunks in steps:
                    for chunk in chunks:
                        yield chunk

    async def release(self, conversation_id: str) -> None:
        """Drop the conversation's KV cache; unknown ids are fine."""
        self._partials.pop(conversation_id, None)
        if generator := self._loaded:
            await self._worker.call(lambda: generator.release(conversation_id))

    def _request(self, conversation: Conversation, options: GenerateOptions) -> PromptRequest:
        instructions = conversation.instructions if options.instructions is None else options.instructions
        # A copy, because the session may append items while the model's thread reads the list.
        snapshot = replace(conversation, items=[*conversation.items], pending_turn=None)
        system = _system(replace(conversation, language=options.language or conversation.language), instructions)
        tools = conversation.tools if options.tools is None else options.tools
        choice = options.tool_choice
        if choice == "none" or not tools:
            return PromptRequest(snapshot, system)
        return PromptRequest(snapshot, system, tools, self._reply_prefix(choice))

    def _reply_prefix(self, choice: str | dict[str, Any]) -> str:
        """The beginning that forces a reply to be a function call, where `tool_choice` requires one."""
        if choice == "auto" or not self._generator.template.calls_in_tags:
            return ""
        name = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
        return "<tool_call>\n" + (f'{{"name": "{name}", "arguments": ' if name else "")


@contextmanager
def _engine_failures() -> Iterator[None]:
    """Turn any exception of the model, or of its chat template (a program by its makers), into `EngineFailure`."""
    try:
        yield
    except EchoSightError:
        raise
    except Exception as error:
        raise EngineFailure(f"The model failed: {error}") from error


def make_llm(argument: str | None, settings: Settings) -> TransformersLLM:
    """`argument` is a Hugging Face id or a folder; None means the setting `model`. Raises `SetupError`."""
    source = argument or settings.model
    if not source:
        raise SetupError("A model in this process needs a name: --model Qwen/Qwen2.5-7B-Instruct")
    require_extra("A model in this process", "torch", "transformers", extra="local", flag=f"--model {source}")
    turns, device = settings.max_history_turns, settings.device
    return TransformersLLM(Path(source).name or source, lambda: build_generator(source, turns, device))


def build_generator(source: str, max_turns: int = 10, device: str = "auto") -> TextGenerator:
    """Load the model at `source`, a Hugging Face id or a folder. Raises `SetupError`."""
    report("libraries")
    from echosight.engines.llm.transformers.checkpoint import FILES, read_checkpoint
    from echosight.engines.llm.transformers.generator import TextGenerator
    from echosight.engines.runtime.huggingface.device import choose_device
    from echosight.engines.runtime.huggingface.memory import free_bytes
    from echosight.engines.runtime.huggingface.source import fetch

    device = choose_device(device)
    folder = fetch(source, FILES)
    checkpoint = read_checkpoint(source, folder, device)
    return TextGenerator(checkpoint, max_turns, int(free_bytes(device) * KV_CACHE_SHARE))


def _system(conversation: Conversation, instructions: str) -> str:
    language = f"Answer in the language {conversation.language}." if conversation.language else ""
    return "\n".join(line for line in (instructions, language) if line)


def _common_words(before: str, now: str) -> str:
    """The whole words on which two partial transcripts agree (LocalAgreement-2, Macháček et al. 2023)."""
    old, new = before.split(), now.split()
    agreed = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return " ".join(new[:agreed])
