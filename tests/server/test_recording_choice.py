"""A client can refuse to be recorded, even where the server records."""

from __future__ import annotations

from pathlib import Path

import orjson
import websockets

from tests.server.serving import Server, running


async def say(server: Server, text: str, **chosen: bool) -> None:
    """Send a text on a new socket, and read the response to its end."""
    async with websockets.connect(f"{server.ws}/ws/stream?uid={text}", max_size=None) as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "events": True, **chosen}).decode())
        content = [{"type": "text", "text": text}]
        await socket.send(orjson.dumps({"messages": [{"role": "user", "content": content}]}).decode())
        async for message in socket:
            if orjson.loads(message).get("type") == "waterfall":
                return


async def test_a_client_that_refuses_is_not_recorded(tmp_path: Path) -> None:
    with running(tmp_path, "--record") as server:
        await say(server, "keep_this")
        await say(server, "lose_this", record=False)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("events.jsonl"))
    assert b"keep_this" in kept
    assert b"lose_this" not in kept
