"""A small client of the EchoSight protocol."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import websockets

from echosight.audio.formats import decode_audio, wav_bytes
from echosight.audio.resampling import resample
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk

Record = dict[str, Any]


def body(*content: Record) -> Record:
    return {"messages": [{"role": "user", "content": list(content)}], "stream": True}


NOTHING = body({"type": "none"})


def sound(chunk: AudioChunk) -> Record:
    data = base64.b64encode(wav_bytes(chunk)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def raw_sound(chunk: AudioChunk) -> Record:
    data = base64.b64encode(chunk.pcm).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "pcm16", "sample_rate": chunk.rate}}


def typed(text: str) -> Record:
    return {"type": "text", "text": text}


def silence(seconds: float, rate: int = INPUT_SAMPLE_RATE) -> AudioChunk:
    return AudioChunk(bytes(2 * int(seconds * rate)), rate)


def joined(*chunks: AudioChunk) -> AudioChunk:
    return AudioChunk(b"".join(resample(c, INPUT_SAMPLE_RATE).pcm for c in chunks))


def pieces(chunk: AudioChunk, seconds: float) -> Iterator[AudioChunk]:
    size = 2 * int(chunk.rate * seconds)
    for start in range(0, len(chunk.pcm), size):
        yield AudioChunk(chunk.pcm[start : start + size], chunk.rate)


class Client:
    """A client with one uid."""

    def __init__(self, url: str, uid: str = "me", token: str | None = None) -> None:
        headers = {"uid": uid} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def post(self, path: str, json: Any = None) -> Record:
        """Post a body; the JSON response, whose status must be 200."""
        response = await self.http.post(path, json=json)
        assert response.status_code == 200, response.text
        answer: Record = response.json()
        return answer

    async def say(self, chunk: AudioChunk, piece_s: float = 0.1) -> list[str]:
        """Send audio in pieces to /stream; returns the finish reasons."""
        reasons = []
        for piece in pieces(chunk, piece_s):
            answer = await self.post("/stream", body(sound(piece)))
            reasons.append(answer["choices"]["finish_reason"])
        return reasons

    @asynccontextmanager
    async def answer(self, request: Record = NOTHING) -> AsyncGenerator[AsyncGenerator[Record]]:
        """The records of /completions as they arrive."""
        async with self.http.stream("POST", "/completions", json=request) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _records(response)

    async def ask(self, *content: Record) -> Response:
        """A whole turn in one request."""
        async with self.answer(body(*content) if content else NOTHING) as records:
            return Response([record async for record in records])


async def _records(response: httpx.Response) -> AsyncGenerator[Record]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield orjson.loads(line.removeprefix("data:"))


class Response:
    """The records of one response."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    @property
    def choices(self) -> list[Record]:
        return [record["choices"][0] for record in self.records if "choices" in record]

    @property
    def text(self) -> str:
        return "".join(c["text"] for c in self.choices if c["text"] not in ("assistant:\n", "\n<end>"))

    @property
    def speech(self) -> AudioChunk:
        """All its speech; each piece is a complete WAV file with a header of 44 bytes."""
        pcm = bytearray()
        for choice in self.choices[1:]:
            if choice["audio"]:
                wav = base64.b64decode(choice["audio"])
                chunk = decode_audio(wav)
                assert (len(wav) - 44, chunk.rate) == (len(chunk.pcm), 24_000)
                pcm += chunk.pcm
        return AudioChunk(bytes(pcm), 24_000)

    @property
    def end(self) -> str:
        return str(self.choices[-1]["finish_reason"])


@asynccontextmanager
async def subscribed(ws: str, uid: str = "me", **options: Any) -> AsyncGenerator[websockets.ClientConnection]:
    """A /ws/stream socket that has subscribed to responses and events."""
    async with websockets.connect(f"{ws}/ws/stream?uid={uid}", max_size=None) as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "events": True, **options}).decode())
        acknowledged: Record = {}
        while "choices" not in acknowledged:
            acknowledged = orjson.loads(await socket.recv())
        assert acknowledged["choices"]["finish_reason"] == "done"
        yield socket


async def until(socket: websockets.ClientConnection, kind: str, seen: list[Record] | None = None) -> Record:
    """Read until a notification of this type; `seen` collects it and all records before it."""
    async with asyncio.timeout(30):
        while True:
            message = await socket.recv()
            if isinstance(message, bytes):
                continue
            record: Record = orjson.loads(message)
            if seen is not None:
                seen.append(record)
            if record.get("type") == kind:
                return record


async def send_sound(socket: websockets.ClientConnection, chunk: AudioChunk, piece_s: float = 0.02) -> None:
    for piece in pieces(chunk, piece_s):
        await socket.send(piece.pcm)
