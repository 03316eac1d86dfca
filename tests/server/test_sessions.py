"""The registry: clients that come back to their sessions, and the end of sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from echosight.errors import EngineFull, InputError
from echosight.options import SessionOptions
from echosight.server import sessions as module
from echosight.server.engine_host import EngineHost
from echosight.server.sessions import Client, Resumption, SessionRegistry
from echosight.session.session import Session
from echosight.settings import Settings
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from tests.fakes import ScriptedEngine
from tests.rig import Clock, LoudnessVad

ME = Client("me", protocol="realtime", kind="browser")


@dataclass
class Rig:
    registry: SessionRegistry
    clock: Clock
    closed: list[str] = field(default_factory=list)


@asynccontextmanager
async def registry(capacity: int = 8, **settings: Any) -> AsyncGenerator[Rig]:
    """A registry whose sessions are named s0, s1, … in the order of their opening."""
    engine = EngineHost(ScriptedEngine(capacity=capacity))
    await engine.load()
    numbers, clock = count(), Clock()

    def create(options: SessionOptions | None) -> tuple[Session, Callable[[], Awaitable[None]]]:
        session = Session(f"s{next(numbers)}", engine, LoudnessVad(), options)

        async def close() -> None:
            await session.close()
            rig.closed.append(session.id)

        return session, close

    rig = Rig(SessionRegistry(create, engine, Settings(**settings), clock), clock)
    try:
        yield rig
    finally:
        await rig.registry.close()


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_client_that_reconnects_at_once_waits_for_its_previous_connection() -> None:
    async with registry() as rig, AsyncExitStack() as previous, AsyncExitStack() as next_:
        first = await previous.enter_async_context(rig.registry.connect(ME))
        connecting = asyncio.create_task(next_.enter_async_context(rig.registry.connect(ME)))
        await settle()
        assert not connecting.done()
        await previous.aclose()
        assert await connecting is first


async def test_a_session_that_ends_with_its_socket_is_not_given_to_the_next_one() -> None:
    async with registry(linger_s=0) as rig, AsyncExitStack() as previous, AsyncExitStack() as next_:
        first = await previous.enter_async_context(rig.registry.connect(ME))
        connecting = asyncio.create_task(next_.enter_async_context(rig.registry.connect(ME)))
        await settle()
        await previous.aclose()
        second = await connecting
        assert second is not first
        assert not second.session.closed


async def test_the_newest_of_several_connections_that_take_over_keeps_the_session() -> None:
    async with registry() as rig:
        connected: list[str] = []
        superseded: list[str] = []

        async def connection(name: str) -> None:
            async with rig.registry.connect(ME, take_over=True) as entry:
                connected.append(name)
                assert entry.reader is not None
                await entry.reader.superseded.wait()
                superseded.append(name)

        tasks = []
        for name in ("first", "second", "third"):
            tasks.append(asyncio.create_task(connection(name)))
            await settle()
        assert (connected, superseded) == (["first", "second", "third"], ["first", "second"])
        await cancel(tasks)
        assert rig.closed == []


async def test_two_connections_that_take_over_at_once_both_get_their_turn() -> None:
    async with registry() as rig, AsyncExitStack() as first:
        entry = await first.enter_async_context(rig.registry.connect(ME))
        connected: list[int] = []

        async def connection(number: int) -> None:
            async with rig.registry.connect(ME, take_over=True) as entry:
                connected.append(number)
                assert entry.reader is not None
                await entry.reader.superseded.wait()

        tasks = [asyncio.create_task(connection(number)) for number in range(2)]
        await settle()
        assert entry.reader is not None
        assert entry.reader.superseded.is_set()
        await first.aclose()
        for _ in range(3):
            await settle()
        assert sorted(connected) == [0, 1]
        await cancel(tasks)


async def test_a_socket_does_not_end_the_session_that_replaced_its_own() -> None:
    async with registry(linger_s=0) as rig:
        async with rig.registry.connect(ME) as first:
            await first.session.close()
            second = await rig.registry.open(ME)
            assert second is not first
        assert rig.registry.get(ME.key) is second
        assert rig.closed == ["s0"]


async def test_two_requests_of_a_new_client_open_one_session() -> None:
    """Both wait until an old session is evicted."""
    async with registry(capacity=1) as rig:
        await rig.registry.open(Client("other"))
        rig.clock.now += module.EVICT_AFTER_S
        first, second = await asyncio.gather(rig.registry.open(ME), rig.registry.open(ME))
        assert first is second
        assert (len(rig.registry), rig.closed) == (1, ["s0"])


async def test_the_longest_inactive_session_is_evicted_and_none_that_is_read() -> None:
    async with registry(capacity=2) as rig:
        async with rig.registry.connect(Client("reader")):
            await rig.registry.open(Client("idle"))
            with pytest.raises(EngineFull) as refused:
                await rig.registry.open(ME)
            assert refused.value.retry_after == module.EVICT_AFTER_S
            rig.clock.now += module.EVICT_AFTER_S
            await rig.registry.open(ME)
        assert rig.closed == ["s1"]


@pytest.mark.parametrize(("connected", "ttl_s"), [(False, 20), (True, 5)])
async def test_an_inactive_session_expires(connected: bool, ttl_s: float, caplog: pytest.LogCaptureFixture) -> None:
    async with registry(idle_timeout_s=20, linger_s=5) as rig:
        if connected:
            async with rig.registry.connect(ME):
                rig.clock.now += 100
        else:
            await rig.registry.open(ME)
        rig.clock.now += ttl_s - 0.1
        with caplog.at_level(logging.INFO):
            await rig.registry.close_expired()
            assert len(rig.registry) == 1
            rig.clock.now += 0.1
            await rig.registry.close_expired()
        assert rig.closed == ["s0"]
        assert "session closed session=s0 reason=expired" in caplog.text


async def test_a_session_that_is_read_does_not_expire() -> None:
    async with registry(idle_timeout_s=20) as rig, rig.registry.connect(ME):
        rig.clock.now += 1_000
        await rig.registry.close_expired()
        assert not rig.closed


async def test_opening_is_logged_with_protocol_and_client(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with registry() as rig:
            await rig.registry.open(ME)
            await rig.registry.open(ME)
    lines = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert lines == [
        "session opened session=s0 protocol=realtime client=browser",
        "session closed session=s0 reason=server_stopping",
    ]


# --- resuming ---------------------------------------------------------------------------------------


def wire() -> RealtimeWire:
    return RealtimeWire(SessionTemplate(), SessionOptions())


async def test_a_session_is_resumed_by_its_id_and_token() -> None:
    async with registry() as rig:
        async with rig.registry.connect(ME) as first:
            first.resumption = Resumption(wire(), "token")
        for session_id, token_hash in (("s0", "other"), ("s1", "token"), (None, "token")):
            async with rig.registry.resume(session_id, token_hash) as refused:
                assert refused is None
        async with rig.registry.resume("s0", "token") as resumed:
            assert resumed is first


async def test_a_session_without_resumption_cannot_be_resumed() -> None:
    async with registry() as rig:
        await rig.registry.open(ME)
        async with rig.registry.resume("s0", "") as refused:
            assert refused is None


async def test_resuming_supersedes_the_previous_connection_and_the_last_of_many_stays() -> None:
    async with registry() as rig:
        connected: list[int] = []
        superseded: list[int] = []

        async def connection(number: int) -> None:
            async with rig.registry.resume("s0", "token") as entry:
                assert entry is not None
                assert entry.reader is not None
                connected.append(number)
                await entry.reader.superseded.wait()
                superseded.append(number)

        async with rig.registry.connect(ME) as first:
            first.resumption = Resumption(wire(), "token")
            tasks = [asyncio.create_task(connection(number)) for number in range(4)]
            assert first.reader is not None
            async with asyncio.timeout(5):
                await first.reader.superseded.wait()
        await settle()
        while len(connected) < 4:
            await asyncio.sleep(0)
        assert superseded == connected[:-1]
        assert rig.registry.get(ME.key) is first
        await cancel(tasks)


async def test_a_session_that_ended_meanwhile_is_not_resumed() -> None:
    async with registry(linger_s=0) as rig:
        async with rig.registry.connect(ME) as first:
            first.resumption = Resumption(wire(), "token")

            async def resume() -> object:
                async with rig.registry.resume("s0", "token") as entry:
                    return entry

            resuming = asyncio.create_task(resume())
            await settle()
        assert await resuming is None
        assert rig.closed == ["s0"]


async def test_a_reader_that_does_not_leave_is_reported_as_409(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKEOVER_WAIT_S", 0.01)
    async with registry() as rig, rig.registry.read(ME):
        with pytest.raises(InputError) as refused:
            async with rig.registry.connect(ME):
                pass
    assert (refused.value.code, refused.value.status) == ("already_reading", 409)
