"""Who may read a caller's answers, and what readers are told when the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from echosight.errors import EchoSightError, InputError
from echosight.server import manager as module
from echosight.server.manager import StreamManager
from echosight.server.metrics import Metrics
from echosight.server.recording import Recorder
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad
from tests.fakes import ScriptedEngine


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncGenerator[StreamManager]:
    manager = made(tmp_path, Settings())
    async with AsyncExitStack() as stack:
        await enter(stack, manager)
        yield manager


def made(folder: Path, settings: Settings) -> StreamManager:
    return StreamManager(ScriptedEngine(), settings, BatchedVad(), Metrics("0", "fake"), Recorder(folder))


async def enter(stack: AsyncExitStack, manager: StreamManager) -> None:
    loaded = asyncio.Event()
    manager.on_loaded = loaded.set
    await stack.enter_async_context(manager.running())
    await loaded.wait()


async def test_who_comes_back_at_once_waits_for_his_former_self_to_leave(manager: StreamManager) -> None:
    async with AsyncExitStack() as former, AsyncExitStack() as back:
        session = await former.enter_async_context(manager.connect("me"))
        coming = asyncio.create_task(back.enter_async_context(manager.connect("me")))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not coming.done()
        await former.aclose()
        assert await coming is session


async def test_a_session_that_ends_with_its_socket_is_not_given_to_the_next(tmp_path: Path) -> None:
    manager = made(tmp_path, Settings(linger_s=0))
    async with AsyncExitStack() as stack, AsyncExitStack() as former:
        await enter(stack, manager)
        session = await former.enter_async_context(manager.connect("me"))
        coming = asyncio.create_task(stack.enter_async_context(manager.connect("me")))
        await asyncio.sleep(0)
        await former.aclose()
        new = await coming
        assert new is not session
        assert not new.outbox.closed


async def test_a_second_reader_is_refused_after_a_while(
    manager: StreamManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDOVER_S", 0.01)
    async with manager.connect("me"):
        with pytest.raises(InputError) as refused:
            await manager.may_read("me")
    assert refused.value.status == 409


async def test_a_reader_that_waits_is_told_that_the_server_ends(manager: StreamManager) -> None:
    async def read(key: str) -> None:
        async for _ in manager.generate(key):
            pass

    waiting = asyncio.create_task(read("me"))
    while not manager.sessions:
        await asyncio.sleep(0)
    manager.leave()
    for reading in (waiting, read("late")):
        with pytest.raises(EchoSightError) as told:
            await reading
        assert told.value.code == "server_stopping"
