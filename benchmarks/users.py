"""Simulated live users: one frame each every 20 ms, and a note of when what was sent and came back."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from benchmarks.workload import Clip, Script
from echosight.media import INPUT_SAMPLE_RATE

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Socket(asyncio.Protocol):
    """As much of a WebSocket client as costs least: no extensions, no fragments, and a mask of zeros.

    `opened` is set by the server's consent; then `take` is called with opcode and payload of every message.
    """

    def __init__(self, url: str, take: Callable[[int, bytes], None]) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._url = url
        self._take = take
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, url: str, take: Callable[[int, bytes], None]) -> Socket:
        """Raises OSError where there is no server, or one that does not consent."""
        at = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, socket = await loop.create_connection(lambda: cls(url, take), at.hostname or "", at.port or 80)
        await asyncio.wait_for(socket.opened, 20)
        return socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        at = urlsplit(self._url)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {at.path}?{at.query} HTTP/1.1",
            f"Host: {at.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        transport.write("\r\n".join([*lines, "", ""]).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed during the handshake"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.opened.done():
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head.partition(b"\r\n")[0]:
                self.opened.set_exception(ConnectionError(head.partition(b"\r\n")[0].decode()))
                return
            self._received = rest
            self.opened.set_result(None)
        self._messages()

    def _messages(self) -> None:
        received = self._received
        at, end = 0, len(received)
        while end - at >= 2:
            opcode, size, head = received[at] & 15, received[at + 1], 2
            if size > 125:
                head = 4 if size == 126 else 10
                if end - at < head:
                    break
                size = int.from_bytes(received[at + 2 : at + head], "big")
            if end - at < head + size:
                break
            payload = bytes(received[at + head : at + head + size])
            at += head + size
            if opcode in (TEXT, BINARY):
                self._take(opcode, payload)
            elif opcode == PING:
                self.send(framed(PONG, payload))
            elif opcode == CLOSE:
                self.close()
        del received[:at]

    def send(self, frame: bytes) -> None:
        """A frame as `framed` makes it."""
        assert self._transport is not None
        self._transport.write(frame)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def framed(opcode: int, payload: bytes) -> bytes:
    """A client's frame. Its mask is zero, so that it is made only once; to the server it is a frame like any other."""
    size = len(payload)
    if size < 126:
        head = bytes([128 | opcode, 128 | size])
    elif size < 65536:
        head = bytes([128 | opcode, 254]) + size.to_bytes(2, "big")
    else:
        head = bytes([128 | opcode, 255]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class Dialect:
    """How a server is spoken to: EchoSight's own way; others differ. `rate`: Hz of the sound that it is sent."""

    path = "/ws/stream"
    rate = INPUT_SAMPLE_RATE

    def __init__(self, binary: bool = False) -> None:
        self._binary = binary

    def hello(self) -> bytes | None:
        audio = b"binary" if self._binary else b"wav"
        turns = b'"turn_detection":{"silence_duration_ms":400}'
        return framed(TEXT, b'{"type":"subscribe","sample_rate":16000,"audio":"%b",%b}' % (audio, turns))

    def frame(self, pcm: bytes) -> bytes:
        return framed(BINARY, pcm)

    def speech(self, opcode: int, message: bytes) -> int:
        """Bytes of 24 kHz speech that a message of the server holds."""
        if opcode == BINARY:
            return len(message)
        if len(message) < 1000 or message.find(b'"text":""', -60) < 0:
            return 0
        at = message.find(b'"audio":"') + 9
        return (message.find(b'"', at) - at) * 3 // 4 - 44

    def interrupted(self, opcode: int, message: bytes) -> bool:
        """Whether a message says that the answer was stopped."""
        return opcode == TEXT and len(message) < 1000 and b'"finish_reason":"interrupted"' in message


@dataclass
class User:
    """One user and the log of its conversation: `sent` has a clock reading for every frame."""

    script: Script
    dialect: Dialect
    sent: list[float] = field(default_factory=list)
    speech: list[tuple[float, int]] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    socket: Socket | None = None

    def take(self, opcode: int, message: bytes) -> None:
        if size := self.dialect.speech(opcode, message):
            self.speech.append((time.monotonic(), size))
        elif self.dialect.interrupted(opcode, message):
            self.stopped.append(time.monotonic())


@dataclass
class Pace:
    """How late the sender itself was, ms; a client that is late measures nothing."""

    late_ms: list[float] = field(default_factory=list)


async def converse(
    url: str, dialect: Dialect, clip: Clip, plans: Sequence[Script], at_frame: dict[int, Callable[[], None]]
) -> tuple[list[User], Pace]:
    """Connect everybody and let them talk to the end of their scripts. `at_frame` is called back at those frames."""
    users = [User(script, dialect) for script in plans]
    frames = [dialect.frame(pcm.tobytes()) for pcm in clip.samples]
    for n, user in enumerate(users):
        user.socket = await Socket.connect(f"{url}{dialect.path}?uid=user{n}", user.take)
        if (hello := dialect.hello()) is not None:
            user.socket.send(hello)
    await asyncio.sleep(0.5)
    gc.collect()
    gc.disable()
    try:
        pace = await _talk(users, frames, at_frame)
        await asyncio.sleep(0.3)
    finally:
        gc.enable()
        for user in users:
            if user.socket is not None:
                user.socket.close()
    await asyncio.sleep(0.1)
    return users, pace


async def _talk(users: list[User], frames: list[bytes], at_frame: dict[int, Callable[[], None]]) -> Pace:
    """Every millisecond a twentieth of the users says its 20 ms."""
    pace = Pace()
    groups = [users[k::20] for k in range(20)]
    last = max(len(user.script.frames) for user in users)
    began = time.monotonic() + 0.02
    for n in range(last):
        if n in at_frame:
            at_frame[n]()
        for k, group in enumerate(groups):
            due = began + n * 0.02 + k * 0.001
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            if k == 0:
                pace.late_ms.append((time.monotonic() - due) * 1000)
            for user in group:
                if n < len(user.script.frames) and user.socket is not None and not user.socket.lost:
                    user.socket.send(frames[user.script.frames[n]])
                    user.sent.append(time.monotonic())
    return pace
