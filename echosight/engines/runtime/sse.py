"""Server-sent events as JSON objects, read while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import httpx
import orjson

from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure

MAX_LINE_BYTES = 1 << 20


async def events(response: httpx.Response, name: str, read_timeout_s: float) -> AsyncGenerator[dict[str, Any]]:
    """The events' data as objects, in order. ``[DONE]`` becomes a last choice, for servers that give no reason.

    Comments can keep a connection open for ever, so the timeout is for events. `name` is the server, for messages.
    Raises `TransientError` where none comes within `read_timeout_s`, and `EngineFailure` where the response is no
    such stream.
    """
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if media_type != "text/event-stream":
        raise EngineFailure(f"{name} sent {media_type or 'an unknown type'} instead of a stream of events")
    async with aclosing(_lines(response, name)) as lines:
        while True:
            try:
                async with asyncio.timeout(read_timeout_s):
                    data = await _next_data(lines)
            except TimeoutError:
                raise TransientError(f"{name} sent nothing for {read_timeout_s:g} s") from None
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
    """Lines as the protocol defines them. httpx's `aiter_lines` also ends lines at U+2028, which JSON may contain."""
    rest = b""
    async with aclosing(cast(AsyncGenerator[bytes], response.aiter_bytes())) as body:
        async for data in body:
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                yield line
            if len(rest) > MAX_LINE_BYTES:
                raise EngineFailure(f"{name} sent a line of more than {MAX_LINE_BYTES >> 20} MiB")
    yield rest


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        raise EngineFailure(f"{name} sent an event that is no chat completion")
    return event
