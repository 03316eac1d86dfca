"""What another process says on its standard error, for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

LONGEST = 4_096
"""A line without end is cut there: who stops reading has the process wait for ever at its next word."""


async def lines(stream: asyncio.StreamReader) -> AsyncGenerator[str]:
    """Line by line, without empty ones. Bars of progress end theirs with a carriage return."""
    rest = b""
    while data := await stream.read(LONGEST):
        *whole, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > LONGEST:
            whole, rest = [*whole, rest], b""
        for line in whole:
            if words := line.decode(errors="replace").strip():
                yield words
    if words := rest.decode(errors="replace").strip():
        yield words
