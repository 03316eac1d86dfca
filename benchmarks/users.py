"""Simulated live users: each sends a frame every 20 ms and logs the times of everything it sends and receives."""

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
    """A WebSocket client of minimal cost: no extensions, no fragments, and a mask of zeros.

    `opened` is set when the server accepts the handshake. Then `on_message` is called with the opcode and the payload
    of each message.
    """

    def __init__(self, url: str, on_message: Callable[[int, bytes], None]) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._url = url
        self._on_message = on_message
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, url: str, on_message: Callable[[int, bytes], None]) -> Socket:
        """Raises OSError if there is no server, or if it refuses the handshake."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, socket = await loop.create_connection(
            lambda: cls(url, on_message), address.hostname or "", address.port or 80
        )
        await asyncio.wait_for(socket.opened, 20)
        return socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        address = urlsplit(self._url)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {address.path}?{address.query} HTTP/1.1",
            f"Host: {address.netloc}",
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
        self._parse_messages()

    def _parse_messages(self) -> None:
        received = self._received
        offset, end = 0, len(received)
        while end - offset >= 2:
            opcode, size, head = received[offset] & 15, received[offset + 1], 2
            if size > 125:
                head = 4 if size == 126 else 10
                if end - offset < head:
                    break
                size = int.from_bytes(received[offset + 2 : offset + head], "big")
            if end - offset < head + size:
                break
            payload = bytes(received[offset + head : offset + head + size])
            offset += head + size
            if opcode in (TEXT, BINARY):
                self._on_message(opcode, payload)
            elif opcode == PING:
                self.send(encode_frame(PONG, payload))
            elif opcode == CLOSE:
                self.close()
        del received[:offset]

    def send(self, frame: bytes) -> None:
        """Send a frame made by `encode_frame`."""
        assert self._transport is not None
        self._transport.write(frame)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """A frame of a client. Its mask is zero, so that all users can send the same bytes; servers accept any mask."""
    size = len(payload)
    if size < 126:
        head = bytes([128 | opcode, 128 | size])
    elif size < 65536:
        head = bytes([128 | opcode, 254]) + size.to_bytes(2, "big")
    else:
        head = bytes([128 | opcode, 255]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class Dialect:
    """The messages of a server's protocol, here EchoSight's own. `rate` is the sample rate of the audio sent to it."""

    path = "/ws/stream"
    rate = INPUT_SAMPLE_RATE

    def __init__(self, binary: bool = False) -> None:
        self._binary = binary

    def subscribe_message(self) -> bytes | None:
        audio = b"binary" if self._binary else b"wav"
        turns = b'"turn_detection":{"silence_duration_ms":400}'
        return encode_frame(TEXT, b'{"type":"subscribe","sample_rate":16000,"audio":"%b",%b}' % (audio, turns))

    def frame(self, pcm: bytes) -> bytes:
        return encode_frame(BINARY, pcm)

    def speech_bytes(self, opcode: int, message: bytes) -> int:
        """The number of bytes of 24 kHz speech in a message of the server."""
        if opcode == BINARY:
            return len(message)
        if len(message) < 1000 or message.find(b'"text":""', -60) < 0:
            return 0
        start = message.find(b'"audio":"') + 9
        return (message.find(b'"', start) - start) * 3 // 4 - 44

    def is_interruption(self, opcode: int, message: bytes) -> bool:
        """Whether a message reports that the response was stopped."""
        return opcode == TEXT and len(message) < 1000 and b'"finish_reason":"interrupted"' in message


@dataclass
class User:
    """One user and its log, in seconds of `time.monotonic`.

    `sent` has the time of each frame, `speech` (time, bytes) of each message with speech, `stopped` the time of each
    message that reports an interruption.
    """

    script: Script
    dialect: Dialect
    sent: list[float] = field(default_factory=list)
    speech: list[tuple[float, int]] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    socket: Socket | None = None

    def on_message(self, opcode: int, message: bytes) -> None:
        if size := self.dialect.speech_bytes(opcode, message):
            self.speech.append((time.monotonic(), size))
        elif self.dialect.is_interruption(opcode, message):
            self.stopped.append(time.monotonic())


@dataclass
class SenderDelays:
    """How late the users sent their frames, in ms. If this is large, the measurement is not valid."""

    late_ms: list[float] = field(default_factory=list)


async def run_users(
    url: str, dialect: Dialect, clip: Clip, plans: Sequence[Script], on_frame: dict[int, Callable[[], None]]
) -> tuple[list[User], SenderDelays]:
    """Connect all users and let them follow their scripts. `on_frame` maps frame numbers to callbacks."""
    users = [User(script, dialect) for script in plans]
    frames = [dialect.frame(pcm.tobytes()) for pcm in clip.samples]
    for n, user in enumerate(users):
        user.socket = await Socket.connect(f"{url}{dialect.path}?uid=user{n}", user.on_message)
        if (subscribe := dialect.subscribe_message()) is not None:
            user.socket.send(subscribe)
    await asyncio.sleep(0.5)
    gc.collect()
    gc.disable()
    try:
        delays = await _send_frames(users, frames, on_frame)
        await asyncio.sleep(0.3)
    finally:
        gc.enable()
        for user in users:
            if user.socket is not None:
                user.socket.close()
    await asyncio.sleep(0.1)
    return users, delays


async def _send_frames(users: list[User], frames: list[bytes], on_frame: dict[int, Callable[[], None]]) -> SenderDelays:
    """Send a frame of each user every 20 ms, a twentieth of the users in each millisecond."""
    delays = SenderDelays()
    groups = [users[k::20] for k in range(20)]
    last = max(len(user.script.frames) for user in users)
    started = time.monotonic() + 0.02
    for n in range(last):
        if n in on_frame:
            on_frame[n]()
        for k, group in enumerate(groups):
            due = started + n * 0.02 + k * 0.001
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            if k == 0:
                delays.late_ms.append((time.monotonic() - due) * 1000)
            for user in group:
                if n < len(user.script.frames) and user.socket is not None and not user.socket.lost:
                    user.socket.send(frames[user.script.frames[n]])
                    user.sent.append(time.monotonic())
    return delays
