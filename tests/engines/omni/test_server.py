"""The whole server on each family: speech in over real sockets, text and speech out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import websockets

from echosight.audio.resampling import resample
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.server import serving
from tests.server.echosight_client import Client, Record, joined, pieces, silence
from tests.server.serving import Server

SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine, importing torch alone takes that long.
        patch.setattr(serving, "START_S", 100)
        with serving.running(folder, "--model", str(folders[model_type]), "--device", "cpu") as shared:
            yield shared


@pytest.fixture(scope="module")
def speech(flite: Flite) -> AudioChunk:
    return joined(flite(SENTENCE), silence(0.8))


async def test_speech_over_the_stream_gets_text_and_speech(server: Server, speech: AudioChunk) -> None:
    async with Client(server.url, "walker") as client, client.answer() as records:
        sending = asyncio.create_task(client.say(speech))
        text = audio = ""
        async with asyncio.timeout(60):
            async for record in records:
                for choice in record.get("choices", ()):
                    text += choice["text"]
                    audio += choice["audio"] or ""
                if audio and len(text) > len("assistant:\n"):
                    break
        await sending
        assert base64.b64decode(audio)[:4] == b"RIFF"
        await client.post("/stop")


async def test_two_realtime_clients_at_once(server: Server, speech: AudioChunk) -> None:
    async def converse() -> list[Record]:
        events: list[Record] = []
        async with websockets.connect(f"{server.ws}/v1/realtime", max_size=1 << 25) as socket:
            session = {"type": "realtime", "max_output_tokens": 8, "instructions": "Be brief."}
            await socket.send(orjson.dumps({"type": "session.update", "session": session}).decode())
            for chunk in pieces(resample(speech, 24_000), 0.1):
                audio = base64.b64encode(chunk.pcm).decode()
                await socket.send(orjson.dumps({"type": "input_audio_buffer.append", "audio": audio}).decode())
            async with asyncio.timeout(60):
                while not any(event["type"] == "response.output_audio.delta" for event in events):
                    events.append(orjson.loads(await socket.recv()))
            await socket.send(orjson.dumps({"type": "response.cancel"}).decode())
            async with asyncio.timeout(60):
                while events[-1]["type"] != "response.done":
                    events.append(orjson.loads(await socket.recv()))
        return events

    for events in await asyncio.gather(converse(), converse()):
        types = [event["type"] for event in events]
        order = ["input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.created"]
        assert [event_type for event_type in types if event_type in order][:3] == order
        assert "response.output_audio_transcript.delta" in types
        assert events[-1]["response"]["output"]
