"""The log of a running server: one line each for a session's opening, its responses and its end, and no content."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import orjson
import websockets

from tests.server.echosight_client import body, subscribed, typed, until
from tests.server.serving import Server, running

SECRET = "sesame"
WORDS = "an unmistakable sentence"


async def realtime_response(server: Server) -> str:
    """One response over /v1/realtime; the id of its session."""
    content = [{"type": "input_text", "text": WORDS}]
    item = {"type": "message", "role": "user", "content": content}
    address = f"{server.ws}/v1/realtime?token={SECRET}"
    async with websockets.connect(address, user_agent_header="my-client/1.0 (secret stuff)") as socket:
        session: str = orjson.loads(await socket.recv())["session"]["id"]
        await socket.send(orjson.dumps({"type": "conversation.item.create", "item": item}).decode())
        await socket.send('{"type": "response.create"}')
        while orjson.loads(await socket.recv())["type"] != "response.done":
            pass
    return session


async def echosight_response(server: Server) -> None:
    """A response that is cancelled, on a socket that is lost."""
    async with subscribed(server.ws, f"me&token={SECRET}") as socket:
        await socket.send(orjson.dumps(body(typed(WORDS))).decode())
        await socket.send(orjson.dumps({"type": "commit"}).decode())
        await until(socket, "turn_started")
        await socket.send(orjson.dumps({"type": "stop"}).decode())
        await until(socket, "waterfall")
        socket.transport.abort()


async def test_sessions_and_responses_are_logged_without_their_content(tmp_path: Path) -> None:
    flags = ("--model", "stub", "--host", "127.0.0.1", "--linger-s", "0")
    with running(tmp_path, *flags, API_TOKENS=SECRET) as server:
        session = await realtime_response(server)
        await echosight_response(server)
        async with asyncio.timeout(10):
            while server.log.count("session closed") < 2:
                await asyncio.sleep(0.05)
        async with subscribed(server.ws, f"last&token={SECRET}"):
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(10)
        log = server.log
    opened = re.findall(r"INFO echosight\.\S+: session opened session=(\S+) protocol=(\S+) client=(\S+)\n", log)
    assert [(protocol, client) for _, protocol, client in opened] == [
        ("realtime", "my-client"),
        ("echosight", "Python"),
        ("echosight", "Python"),
    ]
    assert opened[0][0] == session
    closed = re.findall(r"INFO echosight\.\S+: session closed session=(\S+) reason=(\S+)\n", log)
    assert closed[:2] == [(session, "client_closed"), (opened[1][0], "client_gone")]
    ended = re.findall(r"INFO echosight\.\S+: response ended session=(\S+) response=resp_\w+ outcome=(.*)\n", log)
    assert [(session, outcome.partition(" ")[0]) for session, outcome in ended] == [
        (session, "completed"),
        (opened[1][0], "cancelled"),
    ]
    # The stub may be done before its first byte is sent.
    stages = r"endpoint_ms=\d+ transcript_ms=\d+ first_text_ms=\d+ first_audio_ms=\d+( first_byte_ms=\d+)?"
    assert re.fullmatch(f"completed {stages}", ended[0][1])
    assert "reason=client_cancelled" in ended[1][1]
    for content in (SECRET, WORDS, "quick brown fox", "secret stuff"):
        assert content not in log
