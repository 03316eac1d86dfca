"""The voice assistant at /ws/audio against a real server with the built-in engine and real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import websockets

from echosight.engines.stub import StubEngine
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.server.echosight_client import joined, send_sound, silence
from tests.server.in_process import local_server
from tests.server.serving import Server

Json = dict[str, Any]
OPEN = "please open the window"


@pytest.fixture
def spoken(flite: Flite) -> AudioChunk:
    return joined(silence(0.3), flite(OPEN), silence(0.8))


async def send(socket: websockets.ClientConnection, **message: Any) -> None:
    await socket.send(orjson.dumps(message).decode())


async def until(socket: websockets.ClientConnection, kind: str, **fields: Any) -> tuple[list[Json], bytes]:
    """The events, and all speech, up to an event of this type with these fields."""
    events: list[Json] = []
    speech = b""
    async with asyncio.timeout(30):
        while not events or events[-1] != events[-1] | {"type": kind, **fields}:
            message = await socket.recv()
            if isinstance(message, bytes):
                speech += message
            else:
                events.append(orjson.loads(message))
    return events, speech


async def until_speech(socket: websockets.ClientConnection) -> None:
    async with asyncio.timeout(30):
        while not isinstance(await socket.recv(), bytes):
            pass


def of(events: list[Json], kind: str) -> list[Json]:
    return [event for event in events if event["type"] == kind]


@pytest.mark.parametrize("configures", [True, False])
async def test_a_turn_with_config_or_with_audio_first(server: Server, spoken: AudioChunk, configures: bool) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        if configures:
            await send(socket, type="config", mode="assistant", sample_rate=16_000, output_rate=24_000)
            (config,), _ = await until(socket, "config")
            assert config["output_rate"] == 24_000
        await send_sound(socket, spoken)
        events, speech = await until(socket, "done")
    kinds = [event["type"] for event in events]
    assert kinds.index("listening") < kinds.index("transcript") < kinds.index("response") < kinds.index("done")
    transcripts = of(events, "transcript")
    assert "open the window" in transcripts[-1]["text"].lower()
    assert transcripts[-1]["final"]
    assert "open the window" in "".join(event["text"] for event in of(events, "response"))
    assert [event["state"] for event in of(events, "state")] == ["listening", "thinking", "speaking"]
    assert np.abs(np.frombuffer(speech, np.int16)).max() > 1000, "the response is silent"
    assert events[-1]["outcome"] == "completed"
    assert 0 <= events[-1]["stages_ms"]["endpoint"] <= events[-1]["stages_ms"]["first_byte"]


async def test_speech_over_the_response_cancels_it_and_is_the_next_turn(
    server: Server, spoken: AudioChunk, flite: Flite
) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        await send(socket, type="config", mode="assistant")
        await send_sound(socket, spoken)
        await until_speech(socket)
        await send_sound(socket, joined(flite("good morning"), silence(0.8)))
        events, _ = await until(socket, "interrupted")
        assert "good morning" not in events[-1]["text"].lower()
        (done,), speech = await until(socket, "done")
        assert (done["outcome"], done["reason"], speech) == ("cancelled", "turn_detected", b"")
        events, _ = await until(socket, "transcript", final=True)
        assert "good morning" in events[-1]["text"].lower()


async def test_stop_ends_the_response_and_the_client_says_what_it_played(server: Server, spoken: AudioChunk) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        await send_sound(socket, spoken)
        events, _ = await until(socket, "state", state="speaking")
        await until_speech(socket)
        await send(socket, type="playback", item_id=events[-1]["item_id"], played_ms=0)
        await send(socket, type="stop")
        events, _ = await until(socket, "interrupted")
        assert (events[-1]["text"], events[-1]["played_ms"]) == ("", 0), "nothing was heard of it"
        events, _ = await until(socket, "done")
        assert (events[-1]["outcome"], events[-1]["reason"]) == ("cancelled", "client_cancelled")


async def test_reset_forgets_the_conversation(server: Server, spoken: AudioChunk) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        await send_sound(socket, spoken)
        await until(socket, "response")
        await send(socket, type="reset")
        await until(socket, "reset")
        await send_sound(socket, spoken)
        events, _ = await until(socket, "state", state="speaking")
        await send(socket, type="stop")
        more, _ = await until(socket, "done")
    said = "".join(event["text"] for event in of(events + more, "response"))
    assert "I heard" in said
    assert "Before that" not in said


async def test_a_named_session_goes_on_after_a_lost_connection(server: Server, spoken: AudioChunk) -> None:
    said = []
    for _ in range(2):
        async with websockets.connect(f"{server.ws}/ws/audio") as socket:
            await send(socket, type="config", mode="assistant", session_id="named")
            await send_sound(socket, spoken)
            events, _ = await until(socket, "state", state="speaking")
            await send(socket, type="stop")
            more, _ = await until(socket, "done")
            said.append("".join(event["text"] for event in of(events + more, "response")))
    assert "Before that you said" not in said[0]
    assert "Before that you said" in said[1]


async def test_a_mistake_is_reported_and_the_connection_stays(server: Server, spoken: AudioChunk) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        await send(socket, type="config", mode="assistant", sample_rate=1)
        (error,), _ = await until(socket, "error")
        assert error["param"] == "sample_rate"
        await send_sound(socket, spoken)
        events, _ = await until(socket, "transcript", final=True)
        assert "open the window" in events[-1]["text"].lower()


async def test_the_threshold_of_the_assistant_is_its_own(tmp_path: Path) -> None:
    async with (
        local_server(tmp_path, StubEngine(), speech_threshold=0.42) as server,
        websockets.connect(f"{server.ws}/ws/audio") as socket,
    ):
        await send(socket, type="config", mode="assistant", session_id="threshold")
        await until(socket, "config")
        entry = server.manager.sessions.get("assistant//threshold")
        assert entry is not None
        assert entry.session.options.turn_detection is not None
        assert entry.session.options.turn_detection.threshold == 0.42


async def test_a_wrong_session_id_closes_the_connection_with_an_error(server: Server) -> None:
    async with websockets.connect(f"{server.ws}/ws/audio") as socket:
        await send(socket, type="config", session_id=7)
        (error,), _ = await until(socket, "error")
        assert error["param"] == "session_id"
        await socket.wait_closed()
        assert socket.close_code == 1008
