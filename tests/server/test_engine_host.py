"""One gate to the engine: no more than `capacity` requests generate at once, whatever routes they come by."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import websockets

from echosight.audio.formats import wav_bytes
from echosight.conversation import Conversation, UserTurn
from echosight.engines import TTS, Chunk, SpeechChunk
from echosight.errors import EngineFull, SetupError
from echosight.media import AudioChunk, Transcript
from echosight.options import GenerateOptions
from echosight.server.engine_host import EngineHost
from tests.fakes import ScriptedEngine, words
from tests.server.in_process import LocalServer, local_server
from tests.server.serving import ROOT

# --- the code ---------------------------------------------------------------------------------------

HOST = ROOT / "echosight" / "server" / "engine_host.py"
PACKAGE = ROOT / "echosight"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """The code above the engines."""
    for file in [ROOT / "model_server.py", *PACKAGE.rglob("*.py")]:
        if PACKAGE / "engines" not in file.parents and "node_modules" not in file.parts:
            yield file, ast.parse(file.read_text("utf-8"))


def imported_names(tree: ast.Module) -> set[str]:
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def computing_calls(tree: ast.Module) -> list[ast.Attribute]:
    """The methods called `generate` or `synthesize` that the code calls."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [func for func in calls if isinstance(func, ast.Attribute) and func.attr in ("generate", "synthesize")]


def test_only_the_gate_calls_the_engine_itself() -> None:
    """All other code that generates or synthesizes knows only the gated types, and no part of an engine."""
    raw_types = {f"echosight.engines.{name}" for name in ("Engine", "LLM", "TTS")}
    computing = {file: tree for file, tree in trees() if computing_calls(tree)}
    assert HOST in computing
    assert len(computing) > 2
    del computing[HOST]
    for file, tree in computing.items():
        assert not imported_names(tree) & raw_types, file
        for call in computing_calls(tree):
            assert not (isinstance(call.value, ast.Attribute) and call.value.attr in ("llm", "tts")), file


def test_nobody_takes_the_engine_out_of_its_host() -> None:
    """Only sessions have another `_engine`, the gated one, and they use their own."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "_engine":
                assert isinstance(node.value, ast.Name), file
                assert node.value.id == "self", file


def test_no_route_asks_what_kind_of_engine_it_has() -> None:
    for file, tree in trees():
        engines = {name for name in imported_names(tree) if name.startswith("echosight.engines.")}
        known = {name.rpartition(".")[2] for name in engines}
        assert not known & {"Cascade", "OmniEngine", "MiniCpmEngine", "StubEngine"}, file


# --- the host ---------------------------------------------------------------------------------------


async def test_a_request_waits_for_a_slot_and_is_refused_after_a_while() -> None:
    engine = ScriptedEngine([words("one two")], capacity=1)
    host = EngineHost(engine, slot_wait_s=0.02)
    async with aclosing(host.generate(Conversation(), GenerateOptions())) as first:
        await anext(first)
        assert host.at_capacity
        with pytest.raises(EngineFull, match="All response slots are in use"):
            await anext(host.generate(Conversation(), GenerateOptions()))
    assert not host.at_capacity
    assert [chunk async for chunk in host.generate(Conversation(), GenerateOptions())]


async def test_generate_takes_over_a_reserved_slot_and_gives_it_back() -> None:
    host = EngineHost(ScriptedEngine([words("one two")], capacity=1), slot_wait_s=0.02)
    conversation = Conversation()
    async with host.reserve(conversation.id):
        with pytest.raises(EngineFull):
            await anext(host.generate(Conversation(), GenerateOptions()))
        assert [chunk async for chunk in host.generate(conversation, GenerateOptions())]
        assert not host.at_capacity
        other = host.generate(Conversation(), GenerateOptions())
        await anext(other)
        with pytest.raises(EngineFull):
            await anext(host.generate(conversation, GenerateOptions()))
    assert host.at_capacity, "the end of the reservation takes no slot from another request"
    await other.aclose()


async def test_a_slot_that_was_reserved_in_vain_is_free_again() -> None:
    host = EngineHost(ScriptedEngine(capacity=1))
    async with host.reserve("conversation"):
        assert host.at_capacity
    assert not host.at_capacity


async def test_a_cancelled_wait_takes_no_slot() -> None:
    host = EngineHost(ScriptedEngine(capacity=1))
    async with host.slots.hold():
        waiting = asyncio.create_task(host.slots.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert not host.at_capacity


class BrokenEngine(ScriptedEngine):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def start(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SetupError("No such model; see --model"), "No such model; see --model"),
        (RuntimeError("out of memory"), "fake failed to start (RuntimeError); the log says where"),
    ],
)
async def test_what_failed_while_loading_is_reported(error: Exception, message: str) -> None:
    host = EngineHost(BrokenEngine(error))
    with pytest.raises(EngineFull, match="The engine is loading"):
        host.require_ready()
    await host.load()
    assert host.load_finished.is_set()
    assert not host.ready
    with pytest.raises(EngineFull) as refused:
        host.require_ready()
    assert refused.value.message == message


# --- the server -------------------------------------------------------------------------------------


class BusyEngine(ScriptedEngine):
    """Counts how many requests compute at once. `pace` is awaited in the middle of each."""

    def __init__(self, pace: Callable[[], Awaitable[Any]]) -> None:
        super().__init__([words("hello there")], capacity=2)
        self.pace = pace
        self.now = self.most = 0
        self.tts: TTS | None = BusyTTS(self)

    @asynccontextmanager
    async def computing(self) -> AsyncGenerator[None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.pace()
            yield
        finally:
            self.now -= 1

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        async with self.computing():
            return Transcript("what was said")

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        async with self.computing():
            for chunk in words("hello there"):
                yield chunk


class BusyTTS:
    rate = 24_000
    voices: tuple[str, ...] = ("one",)
    languages: tuple[str, ...] = ()
    name = "busy"

    def __init__(self, engine: BusyEngine) -> None:
        self._engine = engine

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        async with self._engine.computing():
            yield SpeechChunk(bytes(4_800))


HI = {"messages": [{"role": "user", "content": "hi"}]}
TURN = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}


async def chat(http: httpx.AsyncClient, stream: bool) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={**HI, "stream": stream})


async def speak(http: httpx.AsyncClient, form: str) -> httpx.Response:
    return await http.post("/v1/audio/speech", json={"input": "Hi. Hello.", "response_format": form})


async def transcribe(http: httpx.AsyncClient) -> httpx.Response:
    files = {"file": ("speech.wav", wav_bytes(AudioChunk(bytes(3_200))))}
    return await http.post("/v1/audio/transcriptions", files=files)


async def complete(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/completions", json=TURN, headers={"uid": "me"})


def plain_requests(http: httpx.AsyncClient) -> list[Awaitable[httpx.Response]]:
    """Fifteen requests to every plain endpoint, and one to /completions."""
    return [
        *(chat(http, stream) for stream in (False, True) * 3),
        *(speak(http, form) for form in ("pcm", "wav", "flac") * 2),
        *(transcribe(http) for _ in range(3)),
        complete(http),
    ]


async def out_of_band(server: LocalServer, count: int) -> list[str]:
    """The outcomes of responses out of band, all requested at once in one Realtime session."""
    async with websockets.connect(f"{server.ws}/v1/realtime") as socket:
        for _ in range(count):
            await socket.send('{"type": "response.create", "response": {"conversation": "none", "input": []}}')
        outcomes: list[str] = []
        while len(outcomes) < count:
            event = orjson.loads(await socket.recv())
            if event["type"] == "response.done":
                outcomes.append(event["response"]["status"])
            elif event["type"] == "error":
                outcomes.append(event["error"]["code"])
        return outcomes


async def test_twenty_mixed_requests_are_served_two_at_a_time(tmp_path: Path) -> None:
    engine = BusyEngine(lambda: asyncio.sleep(0.02))
    async with (
        local_server(tmp_path, engine) as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
    ):
        requests = asyncio.gather(*plain_requests(http))
        outcomes = await out_of_band(server, 4)
        responses = await requests
    assert [response.status_code for response in responses] == [200] * 16
    assert not [response for response in responses if b"error" in response.content]
    assert set(outcomes) <= {"completed", "engine_full"}
    assert engine.most == 2


async def test_requests_that_wait_too_long_get_503(tmp_path: Path) -> None:
    gate = asyncio.Event()
    engine = BusyEngine(gate.wait)
    async with (
        local_server(tmp_path, engine) as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
    ):
        served = [asyncio.create_task(chat(http, stream=False)), asyncio.create_task(speak(http, "pcm"))]
        while engine.now < 2:
            await asyncio.sleep(0.01)
        server.manager.engine.slots.wait_s = 0.1
        refused = await asyncio.gather(*plain_requests(http))
        assert await out_of_band(server, 2) == ["engine_full", "engine_full"]
        gate.set()
        assert [response.status_code for response in await asyncio.gather(*served)] == [200, 200]
        assert (await complete(http)).status_code == 200, "and there is room again"
    assert engine.most == 2
    for response in refused:
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        body = response.json()
        reason = "All response slots are in use"
        if response.url.path.startswith("/v1/"):
            error = {"message": reason, "type": "server_error", "param": None, "code": "engine_full"}
            assert body == {"error": error}
        else:
            assert body == {"detail": reason, "code": "engine_full"}


async def test_an_engine_without_tts_refuses_to_speak(tmp_path: Path) -> None:
    async with local_server(tmp_path, ScriptedEngine()) as server, httpx.AsyncClient(base_url=server.url) as http:
        refused = await speak(http, "pcm")
    assert (refused.status_code, refused.json()["error"]["code"]) == (501, "unsupported")
