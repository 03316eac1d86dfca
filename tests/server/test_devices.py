"""Small devices against a real server with the built-in engine and real sockets."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import websockets
from websockets.typing import Origin

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.engines.stub import StubEngine
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.server.echosight_client import joined, pieces, silence
from tests.server.in_process import local_server
from tests.server.serving import ROOT, Serve, Server, running

Json = dict[str, Any]
OPEN = "please open the window"
INTERRUPTED = {"status": "complete", "interrupted": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that speaks fast, for speech is sent hardly faster than it is played."""
    flags = ("--device-max-tokens", "16", "--device-words-per-minute", "440")
    with running(tmp_path_factory.mktemp("devices"), *flags) as shared:
        yield shared


@asynccontextmanager
async def hotpin(ws: str, session_id: str, **choices: Any) -> AsyncGenerator[websockets.ClientConnection]:
    """A device that was welcomed."""
    async with websockets.connect(f"{ws}/ws") as socket:
        await socket.send(orjson.dumps({"session_id": session_id, **choices}).decode())
        assert orjson.loads(await socket.recv()) == {"status": "connected", "session_id": session_id}
        yield socket


async def signal(socket: websockets.ClientConnection, name: str) -> None:
    await socket.send(orjson.dumps({"signal": name}).decode())


async def until(socket: websockets.ClientConnection, status: str) -> tuple[list[Json], list[bytes]]:
    """The JSON and the binary messages up to one with this status."""
    records: list[Json] = []
    chunks: list[bytes] = []
    async with asyncio.timeout(30):
        while not records or records[-1]["status"] != status:
            message = await socket.recv()
            if isinstance(message, bytes):
                chunks.append(message)
            else:
                records.append(orjson.loads(message))
    return records, chunks


async def say(
    socket: websockets.ClientConnection, chunk: AudioChunk, sizes: Iterable[int] = ()
) -> tuple[list[Json], list[bytes]]:
    """A turn of a device; the audio is sent in chunks of `sizes` bytes, then in one chunk."""
    rest = chunk.pcm
    for size in sizes:
        await socket.send(rest[:size])
        rest = rest[size:]
    await socket.send(rest)
    await signal(socket, "EOS")
    return await until(socket, "complete")


def field(records: list[Json], stage: str, name: str) -> str:
    """A field of the last record of this stage."""
    return str([record for record in records if record.get("stage") == stage][-1][name])


def example() -> str:
    """The client in the documentation."""
    page = (ROOT / "docs" / "devices.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(code)


def run_example(folder: Path, server: Server) -> subprocess.CompletedProcess[str]:
    program = folder / "device.py"
    program.write_text(example().replace("localhost:32550", f"127.0.0.1:{server.port}"))
    return subprocess.run([sys.executable, str(program)], cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_documented_client_talks_to_the_server(server: Server, tmp_path: Path, flite: Flite) -> None:
    (tmp_path / "audio.pcm").write_bytes(flite(OPEN).pcm)
    done = run_example(tmp_path, server)
    assert (done.returncode, done.stderr) == (0, "")
    connected, *stages, complete = map(orjson.loads, done.stdout.splitlines())
    assert connected == {"status": "connected", "session_id": "my-device"}
    assert [record["stage"] for record in stages[:3]] == ["transcription", "llm", "tts"]
    assert "open the window" in stages[1]["transcript"]
    assert "open the window" in stages[-1]["response"]
    assert complete == {"status": "complete"}
    response = decode_audio((tmp_path / "response.wav").read_bytes())
    assert (response.rate, response.seconds > 1) == (16_000, True)


def test_the_documented_client_ends_where_nothing_was_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "audio.pcm").write_bytes(b"")
    done = run_example(tmp_path, server)
    assert (done.returncode, done.stderr) == (0, "")
    _, error, complete = map(orjson.loads, done.stdout.splitlines())
    assert (error["status"], error["code"]) == ("error", "input_audio_buffer_commit_empty")
    assert complete == {"status": "complete"}


async def test_chunks_of_odd_sizes_are_understood(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "odd") as socket:
        records, _ = await say(socket, flite(OPEN), [1, 2, 3, 1023, 4095, 1, 7])
    assert "open the window" in field(records, "llm", "transcript")


async def test_the_speech_is_one_wav_in_chunks_at_the_rate_of_the_handshake(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "rates", sample_rate=44_100, output_rate=22_050) as socket:
        records, chunks = await say(socket, resample(flite(OPEN), 44_100))
    assert "open the window" in field(records, "llm", "transcript")
    assert {len(chunk) for chunk in chunks[:-1]} == {4096}
    speech = decode_audio(b"".join(chunks))
    assert speech.rate == 22_050
    assert np.abs(np.frombuffer(speech.pcm, np.int16)).max() > 1000, "the response is silent"


async def test_opus_packets_go_in_and_come_back(server: Server, flite: Flite) -> None:
    opus = pytest.importorskip("echosight.audio.opus")
    async with hotpin(server.ws, "opus", format="opus", output_rate=24_000) as socket:
        encoder = opus.OpusEncoder(16_000)
        for packet in [*encoder.push(flite(OPEN).pcm), *encoder.flush()]:
            await socket.send(packet)
        await signal(socket, "EOS")
        records, packets = await until(socket, "complete")
        await socket.send(b"\xff")
        (error,), _ = await until(socket, "error")
    assert "open the window" in field(records, "llm", "transcript")
    decoder = opus.OpusDecoder(24_000)
    speech = b"".join(decoder.decode(packet) for packet in packets)
    assert len(speech) > 2 * 24_000
    assert np.abs(np.frombuffer(speech, np.int16)).max() > 1000, "the response is silent"
    assert max(map(len, packets)) < 500, "a second fits into a few packets of Opus"
    assert error["code"] == "invalid_audio"


async def test_the_same_session_id_goes_on_with_its_conversation(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "again") as socket:
        await say(socket, flite(OPEN))
    async with hotpin(server.ws, "again") as socket:
        records, _ = await say(socket, flite("good morning"))
    assert "before that you said: please open the window" in field(records, "tts", "response").lower()
    async with hotpin(server.ws, "another") as socket:
        records, _ = await say(socket, flite("good morning"))
    assert "Before that" not in field(records, "tts", "response")


async def test_a_device_that_was_reset_takes_over_from_its_open_connection(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "reborn") as before:
        await say(before, flite(OPEN))
        await before.send(flite(OPEN).pcm)
        await signal(before, "EOS")
        await until(before, "processing")
        async with hotpin(server.ws, "reborn") as after:
            with pytest.raises(websockets.ConnectionClosed):
                await until(before, "complete")
            assert before.close_code == 4000
            records, _ = await say(after, flite("good morning"))
    assert [record.get("stage") for record in records[:2]] == ["transcription", "llm"], "of the new turn only"
    assert "Before that you said" in field(records, "tts", "response")


async def test_a_turn_that_a_lost_connection_left_is_no_part_of_the_next_one(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "lost") as socket:
        await socket.send(flite("the answer is seven clubs").pcm)
    async with hotpin(server.ws, "lost") as socket:
        records, _ = await say(socket, flite(OPEN))
    assert "clubs" not in field(records, "llm", "transcript")
    assert "window" in field(records, "llm", "transcript")


async def test_reset_in_mid_response_forgets_the_conversation(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "reset") as socket:
        await say(socket, flite(OPEN))
        await socket.send(flite(OPEN).pcm)
        await signal(socket, "EOS")
        async with asyncio.timeout(10):
            while not isinstance(await socket.recv(), bytes):
                pass
        await signal(socket, "RESET")
        records, _ = await until(socket, "reset")
        assert INTERRUPTED in records
        records, _ = await say(socket, flite("good morning"))
    assert "Before that" not in field(records, "tts", "response")


@pytest.mark.parametrize("by", ["STOP", "audio"])
async def test_a_response_is_interrupted(server: Server, flite: Flite, by: str) -> None:
    async with hotpin(server.ws, f"interrupted by {by}") as socket:
        await socket.send(flite(OPEN).pcm)
        await signal(socket, "EOS")
        async with asyncio.timeout(10):
            while not isinstance(await socket.recv(), bytes):
                pass
        if by == "STOP":
            await signal(socket, "STOP")
        else:
            await socket.send(flite("good morning").pcm)
        records, chunks = await until(socket, "complete")
        assert records[-1] == INTERRUPTED
        assert sum(map(len, chunks)) < 2 * 16_000 * 2, "the rest of the response was sent"
        if by == "audio":
            await signal(socket, "EOS")
            records, _ = await until(socket, "complete")
            assert "good morning" in field(records, "llm", "transcript").lower()


async def test_with_vad_the_server_ends_the_turn_and_speech_stops_the_response(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "vad", vad=True) as socket:
        for piece in pieces(joined(silence(0.3), flite(OPEN), silence(0.8)), 0.02):
            await socket.send(piece.pcm)
        async with asyncio.timeout(10):
            while not isinstance(await socket.recv(), bytes):
                pass
        for piece in pieces(joined(flite("good morning"), silence(0.8)), 0.02):
            await socket.send(piece.pcm)
        records, _ = await until(socket, "complete")
        assert records[-1] == INTERRUPTED
        records, _ = await until(socket, "complete")
    assert "good morning" in field(records, "llm", "transcript").lower()


async def test_a_mistake_is_reported_and_loses_nothing(server: Server, flite: Flite) -> None:
    async with hotpin(server.ws, "mistaken") as socket:
        await socket.send(flite(OPEN).pcm)
        await socket.send('{"signal": "eos"}')
        (error,), _ = await until(socket, "error")
        assert (error["code"], "EOS" in error["message"]) == ("invalid_message", True)
        await signal(socket, "EOS")
        records, _ = await until(socket, "complete")
    assert "open the window" in field(records, "llm", "transcript")


@pytest.mark.parametrize("first", [b"\1\2", "hello", '{"session_id": 7}'])
async def test_a_wrong_handshake_gets_an_error_and_a_close_code(server: Server, first: str | bytes) -> None:
    async with websockets.connect(f"{server.ws}/ws") as socket:
        await socket.send(first)
        assert orjson.loads(await socket.recv())["status"] == "error"
        await socket.wait_closed()
        assert socket.close_code == 1008


async def test_sessions_belong_to_their_token(serve: Serve, flite: Flite) -> None:
    server = serve("--host", "127.0.0.1", "--device-words-per-minute", "440", API_TOKENS="one,two")
    async with websockets.connect(f"{server.ws}/ws?token=one") as one:
        await one.send('{"session_id": "shared"}')
        await one.recv()
        await say(one, flite(OPEN))
        async with websockets.connect(f"{server.ws}/ws?token=two") as two:
            await two.send('{"session_id": "shared"}')
            await two.recv()
            records, _ = await say(two, flite("good morning"))
        assert "Before that" not in field(records, "tts", "response")
        records, _ = await say(one, flite("good morning"))
        assert "before that you said: please open the window" in field(records, "tts", "response").lower()
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws}/ws")
    assert refused.value.response.status_code == 401


async def test_a_page_of_another_origin_is_refused(server: Server) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws}/ws", origin=Origin("https://elsewhere.example"))
    assert refused.value.response.status_code == 403


async def test_device_settings_reach_the_session(tmp_path: Path) -> None:
    settings = {"system_prompt": "Be Ada.", "device_prompt": "Be short.", "device_words_per_minute": 350}
    async with local_server(tmp_path, StubEngine(), **settings) as server, hotpin(server.ws, "settings"):
        entry = server.manager.sessions.get("hotpin//settings")
        assert entry is not None
        options = entry.session.options
    assert options.instructions == "Be Ada.\nBe short.\nReply in Indian English."
    assert (options.response.temperature, options.response.max_output_tokens, options.response.speed) == (0.2, 200, 2.0)


async def test_a_handshake_without_choices_brings_the_defaults_back(tmp_path: Path) -> None:
    async with local_server(tmp_path, StubEngine(), voice="mine", linger_s=0) as server:
        async with hotpin(server.ws, "choices", language="de", voice="other"):
            entry = server.manager.sessions.get("hotpin//choices")
            assert entry is not None
            german = entry.session.options
        async with hotpin(server.ws, "choices"):
            assert server.manager.sessions.get("hotpin//choices") is entry, "kept although linger_s is 0"
            plain = entry.session.options
    assert (german.language, german.response.voice) == ("de", "other")
    assert "Indian English" not in german.instructions
    assert (plain.language, plain.response.voice) == (None, "mine")
    assert "Indian English" in plain.instructions


async def test_a_server_without_room_says_so(tmp_path: Path) -> None:
    async with (
        local_server(tmp_path, StubEngine(), max_sessions=1) as server,
        hotpin(server.ws, "first"),
        websockets.connect(f"{server.ws}/ws") as second,
    ):
        await second.send('{"session_id": "second"}')
        assert orjson.loads(await second.recv())["code"] == "engine_full"
        await second.wait_closed()
        assert second.close_code == 1013


def test_the_voices_and_the_api_are_described(server: Server) -> None:
    voices = httpx.get(f"{server.url}/voices").json()["voices"]
    assert [voice["id"] for voice in voices if voice["default"]] == [voices[0]["id"]]
    assert httpx.get(server.url).json()["endpoints"]["devices"][:2] == ["/ws", "/voices"]
    assert httpx.get(f"{server.url}/ws").status_code == 426


# --- the xiaozhi firmware ---------------------------------------------------------------------------


async def test_a_xiaozhi_device_is_sent_to_the_server_and_talks_to_it(server: Server, flite: Flite) -> None:
    opus = pytest.importorskip("echosight.audio.opus")
    headers = {"Device-Id": "aa:bb:cc", "Client-Id": "c", "Protocol-Version": "3"}
    async with httpx.AsyncClient() as http:
        bootstrap = (await http.post(f"{server.url}/xiaozhi/ota/", headers=headers, json={})).json()
    address = bootstrap["websocket"]["url"]
    assert address == f"{server.ws}/xiaozhi/v1/"
    audio = {"format": "opus", "sample_rate": 16_000, "channels": 1, "frame_duration": 60}
    encoder, decoder = opus.OpusEncoder(16_000), opus.OpusDecoder(24_000)
    packets = encoder.push(joined(silence(0.3), flite(OPEN), silence(1.2)).pcm)
    records: list[Json] = []
    speech = b""
    async with websockets.connect(address, additional_headers=headers) as socket, asyncio.timeout(30):
        await socket.send(orjson.dumps({"type": "hello", "version": 3, "audio_params": audio}).decode())
        hello = orjson.loads(await socket.recv())
        assert (hello["type"], hello["transport"], hello["audio_params"]["sample_rate"]) == (
            "hello",
            "websocket",
            24_000,
        )
        await socket.send('{"type": "listen", "state": "start", "mode": "auto"}')
        for packet in packets:
            await socket.send(b"\0\0" + len(packet).to_bytes(2, "big") + packet)
        while not records or records[-1].get("state") != "stop":
            message = await socket.recv()
            if isinstance(message, str):
                records.append(orjson.loads(message))
                continue
            assert records[-1]["type"] == "tts", "a device drops what comes before tts start"
            assert (message[0], int.from_bytes(message[2:4], "big")) == (0, len(message) - 4)
            speech += decoder.decode(message[4:])
    assert [r["type"] for r in records][:3] == ["stt", "llm", "tts"]
    assert "window" in records[0]["text"]
    assert any("window" in r["text"] for r in records if r.get("state") == "sentence_start")
    assert len(speech) > 2 * 24_000
    assert np.abs(np.frombuffer(speech, np.int16)).max() > 1000, "the response is silent"


async def test_a_xiaozhi_device_goes_on_with_its_conversation_after_a_restart(server: Server) -> None:
    pytest.importorskip("av")
    said = []
    for _ in range(2):
        texts: list[str] = []
        headers = {"Device-Id": "restarted"}
        async with (
            websockets.connect(f"{server.ws}/xiaozhi/v1/", additional_headers=headers) as socket,
            asyncio.timeout(30),
        ):
            await socket.send('{"type": "hello"}')
            await socket.send('{"type": "listen", "state": "detect", "text": "hey robot"}')
            record: Json = {}
            while record.get("state") != "stop":
                message = await socket.recv()
                if isinstance(message, str):
                    record = orjson.loads(message)
                    texts.append(record.get("text") or "")
        said.append(" ".join(texts))
    assert "Before that you said" not in said[0]
    assert "Before that you said: hey robot" in said[1]
