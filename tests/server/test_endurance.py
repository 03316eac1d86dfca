"""A server survives crashes of its parts, rude clients, malformed input, and too many sessions."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from echosight.audio.formats import decode_audio
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.server.echosight_client import (
    Client,
    Record,
    body,
    joined,
    pieces,
    send_sound,
    silence,
    sound,
    subscribed,
    typed,
    until,
)
from tests.server.serving import ROOT, Serve, Server

ROUTES = ["/stream", "/completions", "/feedback", "/init_options"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "type", "input_audio", "data", "image", "options", "rating"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
items = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_audio", "image_data", "image", "image_url", "text", "options", "none", "x"])},
    optional=dict.fromkeys(("input_audio", "image_data", "image", "image_url", "text", "options", "role"), json_values),
)
bodies = json_values | st.builds(lambda content: {"messages": [{"role": "user", "content": content}]}, st.lists(items))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(ROUTES), request_body=bodies | st.binary(max_size=40))
def test_no_body_makes_a_route_fail(server: Server, path: str, request_body: Any) -> None:
    data = request_body if isinstance(request_body, bytes) else json.dumps(request_body).encode()
    with httpx.Client(base_url=server.url, headers={"uid": "fuzz"}, timeout=20) as http:
        if path == "/completions":
            with http.stream("POST", path, content=data) as response:  # an empty body waits for /stream
                assert response.status_code in (200, 400, 413), data
                return
        response = http.post(path, content=data)
    assert response.status_code in (200, 400, 413, 422), (response.status_code, data)
    if response.status_code != 200:
        assert response.json()["detail"]


async def test_a_killed_speech_worker_fails_one_turn_only(serve: Serve, flite: Flite) -> None:
    server = serve("--speech-workers", "1", "--stt", "sphinx", "--tts", "espeak")
    spoken = joined(flite("please open the window"), silence(0.8))
    async with subscribed(server.ws, "unlucky") as socket:
        await send_sound(socket, spoken)
        seen: list[Record] = []
        while not any(r.get("words") for r in seen):
            seen.append(orjson.loads(await socket.recv()))
        for child in server.children():
            os.kill(child, signal.SIGKILL)
        ended = await until(socket, "waterfall", seen)
        assert ended["outcome"] == "failed"
        errors = [r["error"] for r in seen if "error" in r]
        assert errors
        assert errors[0]["message"]
        await send_sound(socket, spoken)
        assert (await until(socket, "waterfall", seen))["outcome"] == "completed"
        assert "window" in " ".join(r["text"] for r in seen if r.get("type") == "transcript")


async def test_the_next_turn_works_after_a_worker_was_killed_while_the_user_spoke(serve: Serve, flite: Flite) -> None:
    server = serve("--speech-workers", "1", "--stt", "sphinx", "--tts", "espeak")
    spoken = joined(flite("please open the window"), silence(0.8))
    async with subscribed(server.ws, "unlucky") as socket:
        for number, piece in enumerate(pieces(spoken, 0.1)):
            await socket.send(piece.pcm)
            if number == 8:
                await until(socket, "speech_started")
                for child in server.children():
                    os.kill(child, signal.SIGKILL)
        assert (await until(socket, "waterfall"))["outcome"] in ("completed", "failed")
        await send_sound(socket, spoken)
        seen: list[Record] = []
        assert (await until(socket, "waterfall", seen))["outcome"] == "completed"
        assert "window" in " ".join(r["text"] for r in seen if r.get("type") == "transcript")


async def test_a_killed_server_leaves_no_child_behind(serve: Serve) -> None:
    server = serve()
    children = server.children()
    assert children
    server.process.kill()
    server.process.wait()
    async with asyncio.timeout(10):
        while any(Path(f"/proc/{child}").exists() for child in children):
            await asyncio.sleep(0.05)


async def test_readers_learn_that_the_server_stops(serve: Serve) -> None:
    server = serve()
    async with Client(server.url, "reader") as me, me.answer(body(typed("say it all once more " * 200))) as records:
        await anext(records)
        server.process.send_signal(signal.SIGTERM)
        *_, last = [record async for record in records]
    assert last["error"]["code"] == "server_stopping"
    server.process.wait(10)
    assert "ERROR" not in server.log


def test_a_port_in_use_is_one_clear_sentence(server: Server) -> None:
    command = [sys.executable, str(ROOT / "model_server.py"), "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stdout == "", "the banner is not printed"
    assert ended.stderr == f"model_server.py: Port {server.port} is already in use; choose another one with --port\n"


async def test_a_full_engine_says_when_to_try_again(serve: Serve) -> None:
    server = serve("--max-sessions", "1")
    async with subscribed(server.ws, "first"), Client(server.url, "second") as second:
        refused = await second.http.post("/completions", json=body(typed("hello")))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert (await second.http.post("/stop")).status_code == 200
        with pytest.raises(websockets.ConnectionClosed) as closed:
            async with subscribed(server.ws, "second"):
                pass
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


async def test_every_route_but_health_needs_a_token(serve: Serve) -> None:
    server = serve("--host", "127.0.0.1", API_TOKENS="red,blue")
    async with httpx.AsyncClient(base_url=server.url, headers={"uid": "me"}) as http:
        assert (await http.get("/health")).status_code == 200
        for path in ("/stream", "/completions", "/stop", "/feedback", "/init_options"):
            for headers in ({}, {"Authorization": "Bearer green"}):
                assert (await http.post(path, json=body(), headers=headers)).status_code == 401
        for path in ("/metrics", "/docs", "/openapi.json", "/v1/models", "/"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, params={"token": "red"})).status_code == 200
        assert (await http.get("/redoc")).status_code == 404
        assert "/openapi.json?token=red" in (await http.get("/docs?token=red")).text
    for token in ("red", "blue"):
        async with Client(server.url, "me", token) as me:
            await me.ask(typed(f"my secret is {token}"))
    async with Client(server.url, "me", "red") as me:
        assert "blue" not in (await me.ask(typed("hello"))).text, "one uid under two tokens is two clients"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws}/ws/stream?uid=me&token=green")
    assert refused.value.response.status_code == 401
    async with websockets.connect(f"{server.ws}/ws/stream?uid=me&token=red"):
        pass


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::1"])
async def test_a_page_of_another_origin_opens_no_socket(server: Server, origin: str) -> None:
    """A browser would allow it, and send it to a server on the user's own machine."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws}/ws/stream?uid=me", additional_headers={"Origin": origin})
    assert refused.value.response.status_code == 403
    assert "completing handshake" not in server.log, "a refusal is not logged as an error of the server"
    async with websockets.connect(f"{server.ws}/v1/realtime", additional_headers={"Origin": origin}) as socket:
        assert orjson.loads(await socket.recv())["error"]["code"] == "foreign_origin"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()


async def test_pages_of_allowed_origins_open_sockets(server: Server, serve: Serve) -> None:
    friendly = serve("--cors-origins", "https://friend.example,https://other.example")
    guarded = serve("--host", "127.0.0.1", API_TOKENS="red")
    for one, origin in [
        (server, server.url),
        (server, "http://localhost:3000"),
        (friendly, "https://friend.example"),
        (guarded, "https://anywhere.example"),
    ]:
        for path in ("/ws/stream?uid=me&token=red", "/v1/realtime?token=red"):
            async with websockets.connect(f"{one.ws}{path}", additional_headers={"Origin": origin}) as socket:
                await socket.send('{"type": "subscribe"}')
                assert "foreign_origin" not in str(await socket.recv())


def resident_mb(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def test_a_client_that_does_not_read_does_not_delay_others(serve: Serve, flite: Flite) -> None:
    # Speech parts in processes of their own: what a model allocates does not count here.
    server = serve("--stt", "sphinx", "--tts", "espeak")
    spoken = joined(flite("please open the window"), silence(0.8))
    async with subscribed(server.ws, "deaf", audio="wav") as deaf:
        before = resident_mb(server.process.pid)
        deaf.transport.pause_reading()

        async def shout() -> None:
            try:
                for _ in range(40):
                    await deaf.send(orjson.dumps(body(typed("say it all once more " * 40))).decode())
                    for _ in range(50):
                        await deaf.send('{"type": "clear"}')
            except websockets.ConnectionClosed:
                pass

        shouting = asyncio.create_task(shout())
        async with subscribed(server.ws, "polite") as polite:
            await send_sound(polite, spoken)
            assert (await until(polite, "waterfall"))["outcome"] == "completed"
        await asyncio.wait([shouting], timeout=20)
        assert resident_mb(server.process.pid) - before < 40
        deaf.transport.abort()
        await asyncio.wait([shouting])


async def test_the_session_of_a_lost_client_is_closed(serve: Serve) -> None:
    server = serve("--linger-s", "0")
    async with httpx.AsyncClient(base_url=server.url) as http, subscribed(server.ws, "ghost") as socket:
        await socket.send(orjson.dumps(body(typed("say something long " * 20))).decode())
        await socket.recv()
        assert (await http.get("/health")).json()["sessions"] == 1
        socket.transport.abort()
        async with asyncio.timeout(10):
            while (await http.get("/health")).json()["sessions"]:
                await asyncio.sleep(0.02)


async def test_oversized_requests_are_refused_with_413(serve: Serve) -> None:
    server = serve("--max-body-bytes", "200000", "--max-image-pixels", "10000", "--max-audio-seconds", "2")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 2_000)).save(bomb, "PNG")
    picture = {"type": "image", "image": {"data": base64.b64encode(bomb.getvalue()).decode()}}
    async with Client(server.url, "greedy") as me:
        for request_body in (body(typed("x" * 300_000)), body(picture), body(sound(silence(3)))):
            refused = await me.http.post("/stream", json=request_body)
            assert refused.status_code == 413, refused.text
            assert refused.json()["detail"]

        async def endless() -> AsyncGenerator[bytes]:
            for _ in range(40):
                yield b"x" * 10_000

        chunked = await me.http.post("/stream", content=endless())
        assert chunked.status_code == 413


async def test_a_recording_holds_both_sides_of_the_session(serve: Serve, flite: Flite, tmp_path: Path) -> None:
    server = serve("--record", "--linger-s", "0")
    spoken = joined(flite("please open the window"), silence(0.8))
    async with subscribed(server.ws, "on-the-record") as socket:
        await send_sound(socket, spoken)
        await until(socket, "waterfall")
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)
    (folder,) = (tmp_path / "log_data" / str(server.port)).iterdir()
    assert decode_audio((folder / "in.wav").read_bytes()).seconds == pytest.approx(spoken.seconds, abs=0.03)
    assert decode_audio((folder / "out.wav").read_bytes()).seconds > 1
    events = [orjson.loads(line)["event"] for line in (folder / "events.jsonl").read_bytes().splitlines()]
    assert {"Audio", "SpeechStarted", "TranscriptUpdated", "ResponseStarted", "ResponseEnded"} <= set(events)


async def heard(server: Server, uid: str, recording: AudioChunk, speed: float | None) -> list[Any]:
    """Events and transcripts of a recording that was sent at `speed` times real time (None: without pauses)."""
    seen: list[Record] = []
    async with subscribed(server.ws, uid) as socket:

        async def read() -> None:
            turns = 0
            while turns < 2:
                turns += (await until(socket, "transcript", seen))["final"]

        reading = asyncio.create_task(read())
        began = time.monotonic()
        for number, piece in enumerate(pieces(recording, 0.02)):
            if speed is not None:
                await asyncio.sleep(began + number * 0.02 / speed - time.monotonic())
            await socket.send(piece.pcm)
        await asyncio.wait_for(reading, 30)
    notes = [r for r in seen if r.get("type") in ("speech_started", "speech_stopped")]
    texts = [r["text"] for r in seen if r.get("type") == "transcript" and r["final"]]
    return [[(n["type"], n["audio_ms"]) for n in notes], texts]


async def test_a_recording_gives_the_same_events_at_any_speed(server: Server, flite: Flite) -> None:
    first, second = flite("please open the window"), flite("the answer is seven clubs")
    recording = joined(silence(0.4), first, silence(0.7), second, silence(0.7))
    real_time = await heard(server, "1x", recording, 1.0)
    assert len(real_time[0]) == 4
    assert await heard(server, "10x", recording, 10.0) == real_time
    assert await heard(server, "unpaced", recording, None) == real_time
