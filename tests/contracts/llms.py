"""The implementations of `LLM` that the contract suite runs: add a line to `LLMS` for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from echosight.engines import LLM, TextChunk
from echosight.engines.cascade.fallback import LLMChain
from echosight.engines.cascade_parts import LLMS as REGISTRY
from echosight.engines.llm.echo import EchoLLM
from echosight.settings import Settings
from tests.contracts.harness import Folder, Running, count_forward_calls, plain
from tests.engines.llm.llama.programs import llama
from tests.engines.upstream import Reply, Request, answer, counted, finished, text, upstream
from tests.fakes import ScriptedLLM

Case = AbstractAsyncContextManager[Running[LLM]]


@asynccontextmanager
async def transformers(folder: Path) -> AsyncIterator[Running[LLM]]:
    from echosight.engines.llm.transformers.chat import TransformersLLM, build_generator

    def build() -> Any:
        generator = build_generator(str(folder))
        # Random weights would end replies at any length.
        generator._stop_tokens = frozenset()
        return generator

    with count_forward_calls() as calls:
        yield Running(TransformersLLM("tiny", build, seed=1), calls, incremental=True)


def llama_cpp(kind: str, folder: Path) -> LLM:
    program, model = llama(kind, folder)
    return REGISTRY.create(f"llama:{model}", Settings(llama_exe_path=program, context_size=2048))


@asynccontextmanager
async def openai() -> AsyncIterator[Running[LLM]]:
    """A server whose reply repeats the user's last message, then counts up to the token limit."""
    chunks = 0

    async def reply_to(request: Request, reply: Reply) -> None:
        nonlocal chunks
        content = request.json["messages"][-1]["content"]
        if not request.json.get("stream"):
            await answer({"choices": []})(request, reply)
            return
        await reply.head(Content_Type="text/event-stream")
        limit = request.json.get("max_completion_tokens") or request.json.get("max_tokens") or 20
        words = [str(content), *(f" {n}" for n in range(1, limit))]
        for word in words:
            chunks += 1
            await sse_line(reply, text(word))
            await asyncio.sleep(0.002)
        await sse_line(reply, finished("length"))
        await sse_line(reply, counted(9, limit))
        await reply.write(b"data: [DONE]\n\n")
        await reply.end()

    async with upstream() as server:
        server.on("/v1/models", answer({"data": [{"id": "tiny"}]}))
        server.on("/v1/chat/completions", reply_to)
        settings = Settings(openai_api_base=f"{server.url}/v1")
        yield Running(REGISTRY.create("openai:tiny", settings), lambda: chunks, incremental=True)


async def sse_line(reply: Reply, event: Any) -> None:
    await reply.write(b"data: " + orjson.dumps(event) + b"\n\n")


@asynccontextmanager
async def scripted() -> AsyncIterator[Running[LLM]]:
    llm = ScriptedLLM(*(TextChunk(f" {n}") for n in range(100)))
    yield Running(llm, lambda: llm.steps, incremental=True)


LLMS: dict[str, Callable[[Folder], Case]] = {
    "echo": lambda _: plain(EchoLLM()),
    "transformers": lambda folder: transformers(folder("llama")),
    "transformers-vision": lambda folder: transformers(folder("qwen_vl")),
    "llama.cpp": lambda folder: plain(llama_cpp("real", folder("real"))),
    "llama.cpp-stand-in": lambda folder: plain(llama_cpp("stand-in", folder("stand-in"))),
    "openai": lambda _: openai(),
    "chain": lambda _: plain(LLMChain([ScriptedLLM(name="broken", fails="at the first chunk"), EchoLLM()])),
    "scripted": lambda _: scripted(),
}

NEEDS_START = [kind for kind in LLMS if kind not in ("echo", "chain", "scripted")]
WITHOUT_LIMIT = ("scripted", "llama.cpp-stand-in")
"""They ignore `max_output_tokens`."""
