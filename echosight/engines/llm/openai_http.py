"""An LLM behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, transformers, Groq, DeepSeek, OpenAI…"""

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
from echosight.engines.llm.messages import Message, nest_function, to_messages
from echosight.engines.runtime.http_client import HttpService, PermanentError, key_for
from echosight.engines.runtime.retries import LLM_BACKOFF_S, TransientError, retry_stream
from echosight.engines.runtime.sse import events
from echosight.errors import CannotSee, EngineFailure, SetupError
from echosight.events import Usage
from echosight.options import GenerateOptions
from echosight.settings import Settings

log = logging.getLogger(__name__)

USAGE_WAIT_S = 0.3
"""How long to wait for the token counts once the reply is complete."""

OPTIONAL_FIELDS = ("stream_options", "tool_choice", "temperature", "top_p", "max_tokens")
"""Fields that some servers reject. Such a field is left out from then on."""

FORMAT_WORDS = (
    "response_format", "response format", "json_schema", "json schema", "json_object", "json mode", "grammar",
    "guided", "structured output",
)  # fmt: skip
"""Words of errors by which servers reject a `response_format`."""

Chunk = TextChunk | ToolCallChunk | GenerationSummary


class OpenAILLM:
    """An `LLM` over ``/chat/completions``. `model` None means the first model that the server lists.

    `max_tokens` limits replies whose request has no limit. With `prefill`, the known part of the prompt is sent while
    the user still speaks, so that the server caches it: for servers that cost nothing per request.
    """

    def __init__(
        self,
        service: HttpService,
        model: str | None,
        *,
        max_turns: int = 10,
        max_tokens: int | None = None,
        prefill: bool = False,
    ) -> None:
        self.service = service
        self._model = model
        self._max_turns = max_turns
        self._max_tokens = max_tokens
        self._prefill_enabled = prefill
        self._unsupported: set[str] = set()
        """Of `OPTIONAL_FIELDS`, "images", and the types of `response_format`: "json_schema" and "json_object"."""
        self._prefills: dict[str, asyncio.Task[None]] = {}

    @property
    def name(self) -> str:
        """The model and the server's host."""
        return f"{self._model} at {self.service.name}" if self._model else self.service.name

    async def start(self) -> None:
        """List the models. Raises `SetupError` where the server does not answer or rejects the key."""
        await self.service.start()
        try:
            body = await self.service.json("GET", "models")
            models = [str(model["id"]) for model in body["data"]]
        except PermanentError as error:
            if self._model is None or error.status in (401, 403):
                raise SetupError(f"{error.message}; {self._remedy(error.status)}") from error
            return
        except (EngineFailure, KeyError, TypeError) as error:
            reason = error.message if isinstance(error, EngineFailure) else "it lists no models"
            raise SetupError(f"No LLM at {self.service.url}: {reason}") from error
        if self._model is None and not models:
            raise SetupError(f"{self.service.name} lists no models; name one: --model {self.service.url}#NAME")
        self._model = self._model or models[0]

    async def close(self) -> None:
        """Cancel prefills and close the connections."""
        for conversation_id in list(self._prefills):
            await self.release(conversation_id)
        await self.service.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Send the known part of the prompt in the background, one request at a time for each conversation."""
        running = self._prefills.get(conversation.id)
        if self._prefill_enabled and (running is None or running.done()):
            payload = self._payload(conversation, GenerateOptions())
            if text and conversation.pending_turn is not None:
                payload["messages"] = self._messages(_with_pending_turn(conversation, text))
            task = asyncio.create_task(self._send_prefill({**payload, "max_tokens": 1}))
            self._prefills[conversation.id] = task

    async def release(self, conversation_id: str) -> None:
        """Cancel the conversation's prefill; unknown ids are fine."""
        if (task := self._prefills.pop(conversation_id, None)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `TransientError`, `PermanentError` and `CannotSee`."""
        await self.release(conversation.id)
        async with aclosing(retry_stream(lambda: self._reply(conversation, options), LLM_BACKOFF_S)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _reply(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        turns = self._max_turns
        while True:
            if options.require_images and "images" in self._unsupported:
                raise CannotSee(f"{self.name} takes no images")
            payload = self._payload(conversation, options, turns) | {"stream": True}
            if "stream_options" not in self._unsupported:
                payload["stream_options"] = {"include_usage": True}
            try:
                async with (
                    self.service.request("POST", "chat/completions", json=payload) as response,
                    aclosing(_completion(response, self.service)) as chunks,
                ):
                    async for chunk in chunks:
                        yield chunk
                return
            except PermanentError as error:
                if turns > 1 and "context" in error.detail.lower():
                    turns //= 2
                    log.info("The conversation exceeds %s's context; sending its last %d turns", self.name, turns)
                elif (field := self._rejected_field(error, payload)) is not None:
                    log.info("%s does not support %s; leaving it out", self.service.name, field)
                    self._unsupported.add(field)
                else:
                    raise

    async def _send_prefill(self, payload: dict[str, Any]) -> None:
        try:
            await self.service.json("POST", "chat/completions", json=payload)
        except EngineFailure as error:
            log.debug("prefill failed: %s", error.message)

    def _payload(
        self, conversation: Conversation, options: GenerateOptions, turns: int | None = None
    ) -> dict[str, Any]:
        tools = conversation.tools if options.tools is None else options.tools
        limit = "max_completion_tokens" if "max_tokens" in self._unsupported else "max_tokens"
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": self._messages(conversation, options.instructions, turns),
            "temperature": options.temperature,
            "top_p": options.top_p,
            limit: options.max_output_tokens or self._max_tokens,
        }
        if tools:
            payload |= {"tools": [nest_function(tool) for tool in tools], "tool_choice": _choice(options.tool_choice)}
        if options.reply_schema is not None:
            payload["response_format"] = self._response_format(options.reply_schema)
        return {key: value for key, value in payload.items() if value is not None and key not in self._unsupported}

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any] | None:
        """The strictest form of JSON output that the server has not rejected; None where only the prompt is left."""
        if "json_schema" not in self._unsupported:
            return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
        return {"type": "json_object"} if "json_object" not in self._unsupported else None

    def _messages(
        self, conversation: Conversation, instructions: str | None = None, turns: int | None = None
    ) -> list[Message]:
        return to_messages(
            conversation,
            instructions=instructions,
            max_turns=turns or self._max_turns,
            images="images" not in self._unsupported,
        )

    def _rejected_field(self, error: PermanentError, payload: dict[str, Any]) -> str | None:
        """The part of the request that the server's error names, where the request can do without it."""
        detail = error.detail.lower()
        if "response_format" in payload and any(word in detail for word in FORMAT_WORDS):
            return str(payload["response_format"]["type"])
        has_images = any(isinstance(message["content"], list) for message in payload["messages"])
        if has_images and "image" in detail:
            return "images"
        return next((field for field in OPTIONAL_FIELDS if field in payload and field in error.detail), None)

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"set OPENAI_API_BASE={self.service.url} and OPENAI_API_KEY, or the key of that service"
        return f"name a model: --model {self.service.url}#NAME"


async def _completion(response: httpx.Response, service: HttpService) -> AsyncGenerator[Chunk]:
    """The chunks of one streamed completion. Raises `TransientError` where the stream ends before it is complete."""
    parser = _CompletionParser()
    name = service.name
    async with aclosing(events(response, name, service.read_timeout_s)) as stream:
        try:
            async for event in stream:
                for chunk in parser.parse(event):
                    yield chunk
                if parser.finish_reason is not None:
                    break
            if parser.finish_reason is not None and not parser.has_usage:
                # The counts come in a later event. Some servers send none, and some never end the stream.
                with contextlib.suppress(TimeoutError, httpx.HTTPError, EngineFailure, TypeError, AttributeError):
                    async with asyncio.timeout(USAGE_WAIT_S):
                        async for event in stream:
                            parser.parse_usage(event)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineFailure(f"{name} sent something that is no chat completion") from error
    if parser.finish_reason is None:
        raise TransientError(f"{name} broke off in the middle of its answer")
    finish = parser.finish_reason if parser.finish_reason in ("length", "content_filter") else "stop"
    yield GenerationSummary(parser.usage, finish)


class _CompletionParser:
    """The state of one streamed completion."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage = Usage()
        self.has_usage = False
        self._calls: dict[int, ToolCallChunk] = {}

    def parse(self, event: dict[str, Any]) -> Iterator[TextChunk | ToolCallChunk]:
        """Raises `EngineFailure` for an error of the server; KeyError, TypeError… for an event of another shape."""
        if error := event.get("error"):
            raise EngineFailure(f"The model failed: {error.get('message') if isinstance(error, dict) else error}"[:300])
        self.parse_usage(event)
        for choice in event["choices"][:1]:
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                if not isinstance(text, str):
                    raise TypeError("text was expected")
                yield TextChunk(text)
            for call in delta.get("tool_calls") or ():
                yield self._parse_call(call)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def parse_usage(self, event: dict[str, Any]) -> None:
        """Take the token counts, where the event has some."""
        if counts := event.get("usage"):
            self.has_usage = True
            cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self.usage = Usage(
                input_text=counts.get("prompt_tokens") or 0,
                cached=cached,
                output_text=counts.get("completion_tokens") or 0,
            )

    def _parse_call(self, call: dict[str, Any]) -> ToolCallChunk:
        """Only the first delta of a call has its id and name."""
        function = call.get("function") or {}
        index = call.get("index", len(self._calls))
        first = self._calls.get(index)
        if first is None:
            first = self._calls[index] = ToolCallChunk(call.get("id") or new_id("call"), function["name"], "")
        return replace(first, arguments=function.get("arguments") or "")


def _with_pending_turn(conversation: Conversation, text: str) -> Conversation:
    """The conversation as it will be if the user's turn ends now, with `text` as its transcript."""
    assert conversation.pending_turn is not None
    return replace(
        conversation, items=[*conversation.items, conversation.pending_turn.to_item(text)], pending_turn=None
    )


def _choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, dict) and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def from_url(address: str, settings: Settings) -> OpenAILLM:
    """The LLM at ``http(s)://host/v1``, or at ``http(s)://host/v1#model``. Raises `SetupError` for another address."""
    url, _, model = address.partition("#")
    key = key_for(url, settings)
    # Servers without an API key are local, so the extra requests of a prefill cost nothing.
    return OpenAILLM(HttpService(url, key), model or None, max_turns=settings.max_history_turns, prefill=key is None)


def openai(model: str | None, settings: Settings) -> OpenAILLM:
    """`model` of OPENAI_API_BASE. Raises `SetupError` without a key."""
    if settings.openai_api_key is None and settings.openai_api_base.startswith("https://api.openai.com"):
        raise SetupError("--model openai needs a key: set OPENAI_API_KEY")
    return from_url(f"{settings.openai_api_base}#{model or 'gpt-4o-mini'}", settings)


def groq(model: str | None, settings: Settings) -> OpenAILLM:
    """`model` of Groq. Raises `SetupError` without a key."""
    if settings.groq_api_key is None:
        raise SetupError("--model groq needs a key: set GROQ_API_KEY")
    return from_url(f"https://api.groq.com/openai/v1#{model or 'llama-3.3-70b-versatile'}", settings)


def deepseek(model: str | None, settings: Settings) -> OpenAILLM:
    """`model` of DeepSeek. Raises `SetupError` without a key."""
    if settings.deepseek_api_key is None:
        raise SetupError("--model deepseek needs a key: set DEEPSEEK_API_KEY")
    return from_url(f"https://api.deepseek.com/v1#{model or 'deepseek-chat'}", settings)
