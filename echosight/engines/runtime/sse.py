"""Server-sent events that are still being sent, as JSON objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import httpx
import orjson

from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure

LONGEST_LINE = 1 << 20


async def events(response: httpx.Response, name: str, silence_s: float) -> AsyncGenerator[dict[str, Any]]:
    """The objects, each in its turn. ``[DONE]`` becomes a last choice, for servers that gave no reason.

    Comments keep a connection open for as long as a server likes, so it is events that must come within `silence_s`.
    Raises `TransientError` where they do not, and EngineFailure for what is no such stream.
    """
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind != "text/event-stream":
        raise EngineFailure(f"{name} answered with {kind or 'something unknown'} instead of a stream of events")
    async with aclosing(_lines(response, name)) as lines:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    data = await _next_data(lines)
            except TimeoutError:
                raise TransientError(f"{name} said nothing for {silence_s:g} s") from None
            if data is None:
                return
            if data == b"[DONE]":
                yield {"choices": [{"finish_reason": "stop"}]}
                return
            yield _object(data, name)


async def _next_data(lines: AsyncGenerator[bytes]) -> bytes | None:
    async for line in lines:
        field, _, value = line.partition(b":")
        if field == b"data" and (data := value.strip()):
            return data
    return None


async def _lines(response: httpx.Response, name: str) -> AsyncGenerator[bytes]:
    """Lines as the protocol has them; those of text also end where JSON has a separator of its own (U+2028)."""
    rest = b""
    async with aclosing(cast(AsyncGenerator[bytes], response.aiter_bytes())) as body:
        async for data in body:
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LONGEST_LINE:
                raise EngineFailure(f"{name} sent a line without end")
    yield rest


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        raise EngineFailure(f"{name} sent something that is no chat completion")
    return event
