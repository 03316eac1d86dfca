"""One recording over two protocols gives the same events of the session."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import orjson
import pytest

from echosight import events as ev
from echosight.audio.resampling import resample
from echosight.media import AudioChunk
from echosight.options import SessionOptions
from echosight.server.engine_host import EngineHost
from echosight.session.session import Session
from echosight.turns.vad import BatchedVad
from echosight.wire import Message, Wire
from echosight.wire.echosight import EchoSightWire
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from tests.conftest import Flite
from tests.fakes import ScriptedEngine

DETECTION = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 400, "interrupt_response": True}
CHUNK_BYTES = 2 * 24 * 20


def over_realtime(pcm: bytes) -> Iterator[Message]:
    session = {"type": "realtime", "audio": {"input": {"turn_detection": DETECTION}}}
    yield orjson.dumps({"type": "session.update", "session": session}).decode()
    for start in range(0, len(pcm), CHUNK_BYTES):
        audio = base64.b64encode(pcm[start : start + CHUNK_BYTES]).decode()
        yield orjson.dumps({"type": "input_audio_buffer.append", "audio": audio}).decode()


def over_the_echosight_socket(pcm: bytes) -> Iterator[Message]:
    yield orjson.dumps({"type": "subscribe", "sample_rate": 24_000, "turn_detection": DETECTION}).decode()
    for start in range(0, len(pcm), CHUNK_BYTES):
        yield pcm[start : start + CHUNK_BYTES]


async def log_of(wire: Wire, messages: Iterator[Message]) -> list[str]:
    """All events of a session with the real turn detector, with ids that do not depend on the run."""
    session = Session("s", EngineHost(ScriptedEngine()), BatchedVad().stream(), SessionOptions(), clock=lambda: 0.0)
    events: list[ev.Output] = []
    for message in messages:
        for received in wire.receive(message):
            await session.feed(received)
        while session.generating or len(session.outbox):
            event = await session.next_event()
            assert event is not None
            if not isinstance(event, ev.Synced):
                events.append(event)
    await session.close()
    names: dict[str, str] = {}
    return [
        re.sub(r"\b(item|resp)_[0-9a-f]+", lambda id: names.setdefault(id[0], f"{id[1]} {len(names)}"), repr(event))
        for event in events
    ]


@pytest.fixture(scope="module")
def recording(flite: Flite) -> bytes:
    """Two turns at 24 kHz."""
    pause = bytes(2 * 16 * 900)
    spoken = [flite("open the window please").pcm, flite("and now close it again").pcm]
    return resample(AudioChunk(pause.join([b"", *spoken, b""])), 24_000).pcm


async def test_the_same_recording_gives_the_same_events(recording: bytes) -> None:
    options = SessionOptions()
    realtime = await log_of(RealtimeWire(SessionTemplate(voices=("one",)), options), over_realtime(recording))
    echosight = await log_of(EchoSightWire("me"), over_the_echosight_socket(recording))
    assert sum("SpeechStarted(" in event for event in realtime) == 2
    assert sum("outcome='completed'" in event for event in realtime) == 2
    assert realtime == echosight
