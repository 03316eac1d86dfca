"""Retries of calls to other servers, with pauses that the server may ask for."""

from __future__ import annotations

import logging
import time
from asyncio import sleep
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from echosight.errors import EngineFailure

log = logging.getLogger(__name__)

T = TypeVar("T")

LLM_BACKOFF_S = (1.0, 2.0, 4.0)
"""Pauses before the second, third and fourth attempt."""

SPEECH_BACKOFF_S = (0.5, 0.5)

MAX_RETRY_AFTER_S = 10.0
"""A speaking user does not wait longer. A server that asks for more counts as down."""

RETRY_DEADLINE_S = 20.0
"""No attempt begins later than this after the first: where each takes a minute, the next candidate is quicker."""


class TransientError(EngineFailure):
    """A retry may work: no connection, no reply in time, too many requests, an error of the server.

    `retry_after` is the pause in seconds that the server asks for, None where it does not.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def retry_stream(start: Callable[[], AsyncGenerator[T]], backoff_s: Sequence[float]) -> AsyncGenerator[T]:
    """Stream what `start` makes. A `TransientError` before the first chunk starts it again, after a pause.

    Raises the last `TransientError`, and one that comes after the first chunk; other errors at once.
    """
    first_attempt = time.monotonic()
    for pause in (*backoff_s, None):
        begun = False
        try:
            async with aclosing(start()) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except TransientError as error:
            if begun:
                raise
            await _pause(error, pause, first_attempt)


async def retry(function: Callable[[], Awaitable[T]], backoff_s: Sequence[float]) -> T:
    """The result of `function`. A `TransientError` calls it again, after a pause; the last one is raised."""
    first_attempt = time.monotonic()
    for pause in (*backoff_s, None):
        try:
            return await function()
        except TransientError as error:
            await _pause(error, pause, first_attempt)
    raise AssertionError("unreachable")


async def _pause(error: TransientError, pause: float | None, first_attempt: float) -> None:
    """Wait before the next attempt, at least as long as the server asks for. Raises `error` where none is left."""
    wait = max(pause or 0.0, error.retry_after or 0.0)
    if pause is None or wait > MAX_RETRY_AFTER_S or time.monotonic() + wait > first_attempt + RETRY_DEADLINE_S:
        raise error
    log.warning("%s; next attempt in %g s", error.message, wait)
    await sleep(wait)
