"""A chat that another server makes: vLLM, llama.cpp, Ollama, transformers, Groq, DeepSeek, OpenAI…"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx

from echosight.conversation import Conversation, new_id
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.messages import Message, messages
from echosight.engines.runtime.http_client import HttpService, PermanentError, key_for
from echosight.engines.runtime.retries import LLM_BACKOFF_S, TransientError, retry_stream
from echosight.engines.runtime.sse import events
from echosight.errors import EngineFailure, SetupError
from echosight.events import Usage
from echosight.options import GenerateOptions
from echosight.settings import Settings

log = logging.getLogger(__name__)

LAST_WORDS_S = 0.3
"""How long the count of tokens is waited for when the answer is complete."""

DISPENSABLE = ("stream_options", "tool_choice", "temperature", "top_p", "max_tokens")
"""What some servers do not know. They are asked once, and then without."""

Chunk = TextChunk | ToolCallChunk | GenerationSummary


class OpenAILLM:
    """A `LLM` over ``/chat/completions``. `model` None: the first that the server lists.

    `max_tokens` limits replies where nobody else does. With `ahead`, what is known of the prompt is sent while the user
    still speaks, so that the server has it in its cache: for servers whose time costs nothing.
    """

    def __init__(
        self,
        upstream: HttpService,
        model: str | None,
        *,
        max_turns: int = 10,
        max_tokens: int | None = None,
        ahead: bool = False,
    ) -> None:
        self.upstream = upstream
        self._model = model
        self._max_turns = max_turns
        self._max_tokens = max_tokens
        self._ahead = ahead
        self._without: set[str] = set()
        self._prefills: dict[str, asyncio.Task[None]] = {}

    @property
    def name(self) -> str:
        return f"{self._model} at {self.upstream.name}" if self._model else self.upstream.name

    async def start(self) -> None:
        """Ask which models there are. Raises `SetupError` where nobody answers, or not to this key."""
        await self.upstream.start()
        try:
            listed = await self.upstream.json("GET", "models")
            known = [str(model["id"]) for model in listed["data"]]
        except PermanentError as error:
            if self._model is None or error.status in (401, 403):
                raise SetupError(f"{error.message}; {self._hint(error.status)}") from error
            return
        except (EngineFailure, KeyError, TypeError) as error:
            reason = error.message if isinstance(error, EngineFailure) else "it lists no models"
            raise SetupError(f"No chat at {self.upstream.url}: {reason}") from error
        if self._model is None and not known:
            raise SetupError(f"{self.upstream.name} lists no models; name one: --model {self.upstream.url}#NAME")
        self._model = self._model or known[0]

    async def close(self) -> None:
        for conversation_id in list(self._prefills):
            await self.release(conversation_id)
        await self.upstream.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Send what is known by now ahead, one request at a time."""
        running = self._prefills.get(conversation.id)
        if self._ahead and (running is None or running.done()):
            asked = self._asked(conversation, GenerateOptions())
            if text and conversation.pending_turn is not None:
                asked["messages"] = self._messages(_with_open_turn(conversation, text))
            task = asyncio.create_task(self._compute_ahead({**asked, "max_tokens": 1}))
            self._prefills[conversation.id] = task

    async def release(self, conversation_id: str) -> None:
        """Stop computing ahead."""
        if (task := self._prefills.pop(conversation_id, None)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `TransientError` and `PermanentError`."""
        await self.release(conversation.id)
        async with aclosing(retry_stream(lambda: self._reply(conversation, options), LLM_BACKOFF_S)) as pieces:
            async for piece in pieces:
                yield piece

    async def _reply(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        turns = self._max_turns
        while True:
            asked = self._asked(conversation, options, turns) | {"stream": True}
            if "stream_options" not in self._without:
                asked["stream_options"] = {"include_usage": True}
            try:
                async with (
                    self.upstream.request("POST", "chat/completions", json=asked) as response,
                    aclosing(_completion(response, self.upstream)) as pieces,
                ):
                    async for piece in pieces:
                        yield piece
                return
            except PermanentError as error:
                if turns > 1 and "context" in error.detail.lower():
                    turns //= 2
                    log.info("%s cannot hold the conversation; its last %d turns are left", self.upstream.name, turns)
                elif (culprit := self._dispensable(error, asked)) is not None:
                    log.info("%s does not take %s, so it is asked without", self.upstream.name, culprit)
                    self._without.add(culprit)
                else:
                    raise

    async def _compute_ahead(self, asked: dict[str, Any]) -> None:
        try:
            await self.upstream.json("POST", "chat/completions", json=asked)
        except EngineFailure as error:
            log.debug("computing ahead failed: %s", error.message)

    def _asked(self, conversation: Conversation, options: GenerateOptions, turns: int | None = None) -> dict[str, Any]:
        tools = conversation.tools if options.tools is None else options.tools
        limit = "max_completion_tokens" if "max_tokens" in self._without else "max_tokens"
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": self._messages(conversation, options.instructions, turns),
            "temperature": options.temperature,
            "top_p": options.top_p,
            limit: options.max_output_tokens or self._max_tokens,
        }
        if tools:
            asked |= {"tools": [_function(tool) for tool in tools], "tool_choice": _choice(options.tool_choice)}
        return {key: value for key, value in asked.items() if value is not None and key not in self._without}

    def _messages(
        self, conversation: Conversation, instructions: str | None = None, turns: int | None = None
    ) -> list[Message]:
        return messages(
            conversation,
            instructions=instructions,
            max_turns=turns or self._max_turns,
            images="images" not in self._without,
        )

    def _dispensable(self, error: PermanentError, asked: dict[str, Any]) -> str | None:
        """What of the request the server complains about, where it can be left out."""
        shown = any(isinstance(message["content"], list) for message in asked["messages"])
        if shown and "image" in error.detail.lower():
            return "images"
        return next((field for field in DISPENSABLE if field in asked and field in error.detail), None)

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return f"set OPENAI_API_BASE={self.upstream.url} and OPENAI_API_KEY, or the key of that service"
        return f"name a model: --model {self.upstream.url}#NAME"


async def _completion(response: httpx.Response, upstream: HttpService) -> AsyncGenerator[Chunk]:
    """The pieces of one streamed completion. Whatever ends before it is complete is `TransientError`."""
    reading = _Reading()
    name = upstream.name
    async with aclosing(events(response, name, upstream.read_timeout_s)) as stream:
        try:
            async for event in stream:
                for piece in reading.take(event):
                    yield piece
                if reading.finish is not None:
                    break
            if reading.finish is not None and not reading.counted:
                # The count comes behind; not all servers send one, nor do all end the stream.
                with contextlib.suppress(TimeoutError, httpx.HTTPError, EngineFailure, TypeError, AttributeError):
                    async with asyncio.timeout(LAST_WORDS_S):
                        async for event in stream:
                            reading.count(event)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineFailure(f"{name} sent something that is no chat completion") from error
    if reading.finish is None:
        raise TransientError(f"{name} broke off in the middle of its answer")
    finish = reading.finish if reading.finish in ("length", "content_filter") else "stop"
    yield GenerationSummary(reading.usage, finish)


class _Reading:
    """A completion so far."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.usage = Usage()
        self.counted = False
        self._calls: dict[int, ToolCallChunk] = {}

    def take(self, event: dict[str, Any]) -> Iterator[TextChunk | ToolCallChunk]:
        """Raises EngineFailure where the server reports one, and all kinds of errors for what has another shape."""
        if error := event.get("error"):
            raise EngineFailure(f"The model failed: {error.get('message') if isinstance(error, dict) else error}"[:300])
        self.count(event)
        for choice in event["choices"][:1]:
            delta = choice.get("delta") or {}
            if said := delta.get("content"):
                if not isinstance(said, str):
                    raise TypeError("text was expected")
                yield TextChunk(said)
            for call in delta.get("tool_calls") or ():
                yield self._call(call)
            self.finish = choice.get("finish_reason") or self.finish

    def count(self, event: dict[str, Any]) -> None:
        if counts := event.get("usage"):
            self.counted = True
            cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self.usage = Usage(
                input_text=counts.get("prompt_tokens") or 0,
                cached=cached,
                output_text=counts.get("completion_tokens") or 0,
            )

    def _call(self, call: dict[str, Any]) -> ToolCallChunk:
        """Only the first piece of a call says whose it is."""
        function = call.get("function") or {}
        at = call.get("index", len(self._calls))
        known = self._calls.get(at)
        if known is None:
            known = self._calls[at] = ToolCallChunk(call.get("id") or new_id("call"), function["name"], "")
        return replace(known, arguments=function.get("arguments") or "")


def _with_open_turn(conversation: Conversation, text: str) -> Conversation:
    """As it will be if the user stops now."""
    assert conversation.pending_turn is not None
    return replace(
        conversation, items=[*conversation.items, conversation.pending_turn.to_item(text)], pending_turn=None
    )


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """In the form of chat completions; the Realtime protocol's is flat."""
    if "function" in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, dict) and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def at(address: str, settings: Settings) -> OpenAILLM:
    """The chat at ``http(s)://host/v1``, or at ``http(s)://host/v1#model``."""
    url, _, model = address.partition("#")
    key = key_for(url, settings)
    # Who asks for no key sends no bill.
    return OpenAILLM(HttpService(url, key), model or None, max_turns=settings.max_history_turns, ahead=key is None)


def openai(model: str | None, settings: Settings) -> OpenAILLM:
    """`model` of OPENAI_API_BASE."""
    if settings.openai_api_key is None and settings.openai_api_base.startswith("https://api.openai.com"):
        raise SetupError("The chat `openai` needs a key: set OPENAI_API_KEY")
    return at(f"{settings.openai_api_base}#{model or 'gpt-4o-mini'}", settings)


def groq(model: str | None, settings: Settings) -> OpenAILLM:
    if settings.groq_api_key is None:
        raise SetupError("The chat `groq` needs a key: set GROQ_API_KEY")
    return at(f"https://api.groq.com/openai/v1#{model or 'llama-3.3-70b-versatile'}", settings)


def deepseek(model: str | None, settings: Settings) -> OpenAILLM:
    if settings.deepseek_api_key is None:
        raise SetupError("The chat `deepseek` needs a key: set DEEPSEEK_API_KEY")
    return at(f"https://api.deepseek.com/v1#{model or 'deepseek-chat'}", settings)
