"""Another attempt where the first came to nothing."""

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

CHAT_S = (1.0, 2.0, 4.0)
"""Pauses before the attempts that follow the first."""

SPEECH_S = (0.5, 0.5)

LONGEST_S = 10.0
"""Nobody who speaks waits longer: a server that asks for more counts as down."""


LATEST_S = 20.0
"""After the first attempt began, none follows: where each of them takes a minute, somebody else had better answer."""


class TransientError(EngineFailure):
    """It may work later: no connection, no answer in time, too many requests, a broken server.

    `retry_after` is the server's wish, in seconds.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def retry_stream(start: Callable[[], AsyncGenerator[T]], pauses_s: Sequence[float]) -> AsyncGenerator[T]:
    """Stream what `start` makes; where it is `TransientError` before the first piece, pause and start again."""
    since = time.monotonic()
    for pause in (*pauses_s, None):
        begun = False
        try:
            async with aclosing(start()) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
            return
        except TransientError as error:
            if begun:
                raise
            await _pause(error, pause, since)


async def retry(work: Callable[[], Awaitable[T]], pauses_s: Sequence[float]) -> T:
    """The result of `work`; where it is `TransientError`, pause and try again."""
    since = time.monotonic()
    for pause in (*pauses_s, None):
        try:
            return await work()
        except TransientError as error:
            await _pause(error, pause, since)
    raise AssertionError("unreachable")


async def _pause(error: TransientError, pause: float | None, since: float) -> None:
    """Wait before the next attempt, as long as the server asks for. Raises the error where there is none."""
    wait = max(pause or 0.0, error.retry_after or 0.0)
    if pause is None or wait > LONGEST_S or time.monotonic() + wait > since + LATEST_S:
        raise error
    log.warning("%s; another attempt in %g s", error.message, wait)
    await sleep(wait)
