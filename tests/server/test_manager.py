"""Requests of the EchoSight protocol: one reader for a client's responses, and an error at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from echosight import events as ev
from echosight.conversation import Item, TextPart
from echosight.errors import EchoSightError, InputError
from echosight.events import ResponseEnded, TextDelta
from echosight.media import AudioChunk
from echosight.options import SessionOptions
from echosight.server import sessions as module
from echosight.server.manager import StreamManager
from echosight.server.metrics import Metrics
from echosight.server.recording import Recorder
from echosight.server.sessions import Client
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad
from echosight.wire.echosight import EchoSightWire
from echosight.wire.echosight_messages import CustomOptions
from tests.fakes import ScriptedEngine, words
from tests.server.test_metrics import samples

ME = Client("me")


def make_manager(folder: Path, engine: ScriptedEngine, metrics: Metrics | None = None) -> StreamManager:
    return StreamManager(engine, Settings(), BatchedVad(), metrics or Metrics("0", "fake"), Recorder(folder))


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncGenerator[StreamManager]:
    manager = make_manager(tmp_path, ScriptedEngine([words("the first"), words("the second")]))
    async with manager.running():
        await manager.engine.load_finished.wait()
        yield manager


async def test_a_second_reader_is_refused_after_a_while(
    manager: StreamManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKEOVER_WAIT_S", 0.01)
    async with manager.sessions.connect(ME):
        with pytest.raises(InputError) as refused:
            await manager.check_readable(ME)
    assert refused.value.status == 409


async def test_a_reader_learns_that_the_server_stops(manager: StreamManager) -> None:
    async def read(client: Client) -> None:
        async for _ in manager.generate(client):
            pass

    waiting = asyncio.create_task(read(ME))
    while not len(manager.sessions):
        await asyncio.sleep(0)
    manager.begin_shutdown()
    for reading in (waiting, read(Client("late"))):
        with pytest.raises(EchoSightError) as stopped:
            await reading
        assert stopped.value.code == "server_stopping"


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "subscribe"}',
        '{"type": "configure", "sample_rate": 8000}',
        '{"type": "configure", "audio": "binary", "events": true, "levels": true}',
        '{"type": "configure", "turn_detection": {"max_turn_ms": 9000}}',
    ],
)
async def test_a_socket_keeps_what_init_options_chose(manager: StreamManager, message: str) -> None:
    """Both change one set of options: a message changes the fields that it names, and leaves the others alone."""
    sample = AudioChunk(bytes(320))
    chosen = CustomOptions(
        hd_video=True, use_audio_prompt=2, vad_threshold=0.7, voice_clone_prompt="Calm.", assistant_prompt="Be kind."
    )
    await manager.upload_customized_audio(ME, sample)
    await manager.update_customized_options(ME, chosen)
    async with manager.sessions.connect(ME) as entry:
        before = entry.session.options
        for event in EchoSightWire(ME.uid).receive(message):
            await entry.session.feed(event)
        after = entry.session.options
    assert (before.response.voice_sample, before.hd_video) == (sample, True)
    assert "Be kind." in before.instructions
    assert threshold(before) != threshold(manager.live_options())
    assert (threshold(after), after.instructions) == (threshold(before), before.instructions)
    assert (after.response, after.hd_video) == (before.response, before.hd_video)


def threshold(options: SessionOptions) -> float:
    assert options.turn_detection is not None
    return options.turn_detection.threshold


def item(text: str) -> Item:
    return Item("user", (TextPart(text),))


async def test_a_whole_turn_gets_its_own_response_and_not_an_earlier_one(manager: StreamManager) -> None:
    """A response that nobody has read is complete, and still waits in the session."""
    session = (await manager.sessions.open(ME)).session
    await session.feed(ev.AddItem(item("earlier")))
    await session.feed(ev.CreateResponse())
    while session.generating:
        await asyncio.sleep(0.01)
    async with aclosing(manager.generate(ME, item("now"))) as events:
        seen = [event async for event in events]
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "the second"
    assert [event.outcome for event in seen if isinstance(event, ResponseEnded)] == ["completed"]


async def test_inputs_are_counted_by_kind(tmp_path: Path) -> None:
    metrics = Metrics("0", "fake")
    manager = make_manager(tmp_path, ScriptedEngine(), metrics)
    async with manager.running():
        await manager.engine.load_finished.wait()
        await manager.prefill(ME, [ev.Text("secret"), ev.Text("words")])
        await manager.sys_prompt_init(ME)
    assert samples(metrics)["echosight_inputs_total,kind=Text"] == 2
    assert samples(metrics)["echosight_inputs_total,kind=Reset"] == 1
