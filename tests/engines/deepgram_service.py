"""A WebSocket server on a real socket that speaks Deepgram's protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response


def results(text: str, start: float, duration: float, *, final: bool, flushed: bool = False) -> str:
    words = [
        {"word": word.strip(".").lower(), "punctuated_word": word, "start": start + n / 10, "end": start + n / 10 + 0.1}
        for n, word in enumerate(text.split())
    ]
    channel = {"alternatives": [{"transcript": text, "words": words}]}
    message = {"type": "Results", "is_final": final, "start": start, "duration": duration, "channel": channel}
    return json.dumps(message | ({"from_finalize": True} if flushed else {}))


class Service:
    """`final_text` gives the words of a final result, by all audio so far."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.status = 200
        self.cuts = 0
        self.silent_end = False
        self.garbage = ""
        self.languages: tuple[str, ...] = ()
        self.final_text: Callable[[bytes], str] = lambda pcm: "So good."
        self.port = 0

    async def talk(self, socket: ServerConnection) -> None:
        self.heard.append(b"")
        index = len(self.heard) - 1
        final = 0.0
        async for message in socket:
            seconds = len(self.heard[index]) / 32_000
            if isinstance(message, bytes):
                self.heard[index] += message
                seconds = len(self.heard[index]) / 32_000
                if self.garbage:
                    await socket.send(self.garbage)
                await socket.send('{"type": "SpeechStarted"}')
                await socket.send(results("so far", final, seconds - final, final=False))
            elif json.loads(message)["type"] == "Finalize":
                if self.cuts:
                    self.cuts -= 1
                    await socket.close(1011, "NET-0001")
                    return
                if not self.silent_end:
                    text = self.final_text(self.heard[index])
                    await socket.send(results(text, final, seconds - final, final=True, flushed=True))
                final = seconds

    def admit(self, socket: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        if self.status != 200:
            refusal = socket.respond(self.status, "no")
            refusal.headers["Retry-After"] = "3"
            return refusal
        if self.languages and request.path.partition("language=")[2] not in self.languages:
            return socket.respond(400, "no such language")
        return None


@asynccontextmanager
async def deepgram_service() -> AsyncIterator[Service]:
    service = Service()
    async with serve(service.talk, "127.0.0.1", 0, process_request=service.admit) as listening:
        service.port = next(iter(listening.sockets)).getsockname()[1]
        yield service
