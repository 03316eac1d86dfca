"""The whole server on each family: a voice in over real sockets, text and speech out."""

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

SAID = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        # Importing torch alone takes that long on a busy machine.
        patch.setattr(serving, "START_S", 100)
        with serving.running(folder, "--model", str(folders[kind]), "--device", "cpu") as shared:
            yield shared


@pytest.fixture(scope="module")
def voice(flite: Flite) -> AudioChunk:
    return joined(flite(SAID), silence(0.8))


async def test_a_voice_by_stream_is_answered_in_text_and_speech(server: Server, voice: AudioChunk) -> None:
    async with Client(server.url, "walker") as caller, caller.answer() as records:
        saying = asyncio.create_task(caller.say(voice))
        text = speech = ""
        async with asyncio.timeout(60):
            async for record in records:
                for choice in record.get("choices", ()):
                    text += choice["text"]
                    speech += choice["audio"] or ""
                if speech and len(text) > len("assistant:\n"):
                    break
        await saying
        assert base64.b64decode(speech)[:4] == b"RIFF"
        await caller.post("/stop")


async def test_two_voices_by_realtime_at_once(server: Server, voice: AudioChunk) -> None:
    async def talk() -> list[Record]:
        seen: list[Record] = []
        async with websockets.connect(f"{server.ws}/v1/realtime", max_size=1 << 25) as socket:
            session = {"type": "realtime", "max_output_tokens": 8, "instructions": "Be brief."}
            await socket.send(orjson.dumps({"type": "session.update", "session": session}).decode())
            for piece in pieces(resample(voice, 24_000), 0.1):
                audio = base64.b64encode(piece.pcm).decode()
                await socket.send(orjson.dumps({"type": "input_audio_buffer.append", "audio": audio}).decode())
            async with asyncio.timeout(60):
                while not any(event["type"] == "response.output_audio.delta" for event in seen):
                    seen.append(orjson.loads(await socket.recv()))
            await socket.send(orjson.dumps({"type": "response.cancel"}).decode())
            async with asyncio.timeout(60):
                while seen[-1]["type"] != "response.done":
                    seen.append(orjson.loads(await socket.recv()))
        return seen

    for seen in await asyncio.gather(talk(), talk()):
        kinds = [event["type"] for event in seen]
        order = ["input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.created"]
        assert [kind for kind in kinds if kind in order][:3] == order
        assert "response.output_audio_transcript.delta" in kinds
        assert seen[-1]["response"]["output"]
