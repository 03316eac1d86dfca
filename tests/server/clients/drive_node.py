"""Drives an npm client through link.mjs: drive_node.py CLIENT URL SPEECH SCENARIO."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from scenarios import Event, drive

LINK = Path(__file__).with_name("link.mjs")


class NodeLink:
    """A pipe to the client's process."""

    def __init__(self, process: asyncio.subprocess.Process, beta: bool) -> None:
        assert process.stdin
        assert process.stdout
        self.beta = beta
        self._in, self._out = process.stdin, process.stdout

    async def send(self, event: Event) -> None:
        self._in.write(json.dumps(event).encode() + b"\n")
        await self._in.drain()

    async def receive(self) -> Event:
        line = await self._out.readline()
        assert line, "the client gave up"
        event: Event = json.loads(line)
        return event


async def main(client: str, url: str, speech: str, scenario: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", LINK, client, url, stdin=pipe, stdout=pipe, limit=1 << 26)
    try:
        await drive(NodeLink(process, client == "openai-realtime-api"), scenario, speech)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


asyncio.run(main(*sys.argv[1:]))
