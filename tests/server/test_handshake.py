"""Every socket route begins and refuses in the same way, and each connection is greeted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import orjson
import pytest
import websockets
from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute
from starlette.routing import BaseRoute

from echosight.app import create_app
from echosight.engines.stub import StubEngine
from echosight.errors import EngineFull, InputError
from echosight.routes.handshake import close_code
from echosight.server.sessions import SupersededError
from echosight.settings import Settings
from echosight.wire.echosight import EchoSightWire
from echosight.wire.realtime import RealtimeWire
from tests.fakes import ScriptedEngine
from tests.server.in_process import LocalServer, local_server

SUBSCRIBING = ["/ws/stream", "/ws/api/v1/stream", "/v1/realtime"]
"""Sockets that can begin with `SUBSCRIBE`."""
SOCKETS = [*SUBSCRIBING, "/ws/audio", "/ws", "/xiaozhi/v1/", "/xiaozhi/v1"]
SUBSCRIBE = '{"type": "subscribe"}'


@pytest.fixture
async def local(tmp_path: Path) -> AsyncGenerator[LocalServer]:
    async with local_server(tmp_path, ScriptedEngine()) as server:
        yield server


def routes_of(app: FastAPI) -> list[BaseRoute]:
    """All routes, also those of routers that FastAPI includes without copying them."""
    found: list[BaseRoute] = []
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        nested = getattr(getattr(route, "original_router", None), "routes", None)
        if nested is not None:
            waiting += nested
        else:
            found.append(route)
    return found


def test_these_are_all_the_sockets(tmp_path: Path) -> None:
    routes = routes_of(create_app(Settings(log_dir=tmp_path), ScriptedEngine()))
    paths = {route.path for route in routes if isinstance(route, APIWebSocketRoute)}
    assert paths == {*SOCKETS, "/{path:path}"}


@pytest.mark.parametrize("path", ["/wss", "/ws/streams", "/health", "/v1/realtime/calls", "/"])
async def test_a_socket_at_an_unknown_path_gets_404(local: LocalServer, path: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{local.ws}{path}")
    response = refused.value.response
    assert response.status_code == 404
    assert orjson.loads(response.body)["detail"] == "There is no WebSocket at this path"


@pytest.mark.parametrize("path", SOCKETS)
async def test_a_plain_request_of_a_socket_path_gets_426(local: LocalServer, path: str) -> None:
    async with httpx.AsyncClient(base_url=local.url) as http:
        refused = await http.get(path)
    assert refused.status_code == 426
    assert refused.headers["upgrade"] == "websocket"
    body = refused.json()
    error = {"detail": body["error"]["message"], "code": body["error"]["code"]} if "error" in body else body
    assert ("error" in body) == path.startswith("/v1/")
    assert "WebSocket" in error["detail"]
    assert error["code"] == "upgrade_required"


async def refusal(server: LocalServer, path: str, **headers: str) -> tuple[int, str]:
    """(HTTP status or close code, error code) of a refused socket."""
    try:
        async with websockets.connect(f"{server.ws}{path}", additional_headers={"uid": "me", **headers}) as socket:
            code = ""
            try:
                if not path.startswith("/v1/"):
                    await socket.send(SUBSCRIBE)
                while True:
                    record = orjson.loads(await socket.recv())
                    code = record["error"]["code"] if isinstance(record.get("error"), dict) else code
            except websockets.ConnectionClosed as closed:
                assert closed.rcvd is not None
                return closed.rcvd.code, code
    except websockets.InvalidStatus as refused:
        return refused.response.status_code, orjson.loads(refused.response.body)["code"]


@pytest.mark.parametrize(("path", "status"), [(path, 3000 if path.startswith("/v1/") else 401) for path in SOCKETS])
async def test_a_wrong_token_is_refused(tmp_path: Path, path: str, status: int) -> None:
    async with local_server(tmp_path, ScriptedEngine(), api_tokens="sesame") as server:
        for token in ("", "?token=sesam"):
            assert await refusal(server, path + token) == (status, "invalid_api_key")
        async with websockets.connect(f"{server.ws}{path}?uid=me&token=sesame"):
            pass


@pytest.mark.parametrize(("path", "status"), [(path, 1008 if path.startswith("/v1/") else 403) for path in SOCKETS])
async def test_a_page_of_another_origin_is_refused(local: LocalServer, path: str, status: int) -> None:
    assert await refusal(local, path, Origin="https://evil.example") == (status, "foreign_origin")


@pytest.mark.parametrize("path", SUBSCRIBING)
async def test_without_room_for_a_session_the_socket_is_closed_with_1013(tmp_path: Path, path: str) -> None:
    async with (
        local_server(tmp_path, ScriptedEngine(capacity=1)) as server,
        websockets.connect(f"{server.ws}/v1/realtime") as first,
    ):
        await first.recv()
        status, code = await refusal(server, path)
        assert status == 1013
        assert code == ("engine_full" if path.startswith("/v1/") else "")


@pytest.mark.parametrize("path", SUBSCRIBING)
async def test_every_connection_is_greeted_before_anything_else(
    local: LocalServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wire in (EchoSightWire, RealtimeWire):
        monkeypatch.setattr(wire, "greet", lambda self: ['{"type": "hello"}'])
    for _ in range(2):  # the second time with a session that exists already, where the protocol has one for each uid
        async with websockets.connect(f"{local.ws}{path}?uid=me") as socket:
            await socket.send(SUBSCRIBE)
            assert orjson.loads(await socket.recv()) == {"type": "hello"}


async def test_a_connection_that_resumes_is_greeted_before_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RealtimeWire, "greet", lambda self: ['{"type": "hello"}'])
    async with local_server(tmp_path, StubEngine()) as server:
        async with websockets.connect(f"{server.ws}/v1/realtime") as first:
            await first.recv()
            created = orjson.loads(await first.recv())
            await first.send('{"type": "input_audio_buffer.clear"}')
            cleared = orjson.loads(await first.recv())
            first.transport.abort()
        query = f"session={created['session']['id']}&last_event={created['event_id']}"
        async with websockets.connect(f"{server.ws}/v1/realtime?{query}") as second:
            assert orjson.loads(await second.recv()) == {"type": "hello"}
            assert orjson.loads(await second.recv()) == cleared


def test_each_reason_has_one_close_code() -> None:
    assert close_code(SupersededError("resumed on another socket")) == 4000
    assert close_code(EngineFull()) == 1013
    assert close_code(InputError("wrong token", status=401)) == 3000
    assert close_code(InputError("wrong origin", status=403)) == 1008
