from __future__ import annotations

import asyncio

import pytest

from echosight.engines.runtime.stderr import LONGEST, lines


@pytest.mark.parametrize("size", [1, 7, LONGEST])
async def test_lines_and_bars_come_one_by_one(size: int) -> None:
    stream = asyncio.StreamReader()
    said = "Loading…\r\n 1/2\r 2/2\r\n\nModuleNotFoundError: x".encode()
    for at in range(0, len(said), size):
        stream.feed_data(said[at : at + size])
    stream.feed_eof()
    assert [line async for line in lines(stream)] == ["Loading…", "1/2", "2/2", "ModuleNotFoundError: x"]


async def test_a_line_without_end_is_cut() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(b"." * 3 * LONGEST + b"!\nend")
    stream.feed_eof()
    found = [line async for line in lines(stream)]
    assert "".join(found) == "." * 3 * LONGEST + "!end"
    assert found[-1] == "end"
    assert max(map(len, found)) <= 2 * LONGEST
