"""The log lines of worker processes."""

from __future__ import annotations

import asyncio

import pytest

from echosight.engines.runtime.ipc import MAX_LOG_LINE, log_lines


@pytest.mark.parametrize("size", [1, 7, MAX_LOG_LINE])
async def test_lines_and_progress_bars_come_one_by_one(size: int) -> None:
    stream = asyncio.StreamReader()
    text = "Loading…\r\n 1/2\r 2/2\r\n\nModuleNotFoundError: x".encode()
    for start in range(0, len(text), size):
        stream.feed_data(text[start : start + size])
    stream.feed_eof()
    assert [line async for line in log_lines(stream)] == ["Loading…", "1/2", "2/2", "ModuleNotFoundError: x"]


async def test_a_very_long_line_is_cut() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(b"." * 3 * MAX_LOG_LINE + b"!\nend")
    stream.feed_eof()
    found = [line async for line in log_lines(stream)]
    assert "".join(found) == "." * 3 * MAX_LOG_LINE + "!end"
    assert found[-1] == "end"
    assert max(map(len, found)) <= 2 * MAX_LOG_LINE
