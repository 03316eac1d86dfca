"""Frames over two pipes between the server and its worker processes, and the lines of their standard error."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader

HEADER = struct.Struct("<BII")
"""Kind, channel, length of the payload in bytes."""

MAX_LOG_LINE = 4_096
"""Bytes. A longer line is cut: if we waited for its end, the process would block on its next write."""


class FrameType(IntEnum):
    """S: sent by the server, W: by the worker process. Each channel is one request, opened by the server."""

    READY = 0  # W: loaded; the payload describes the voices and so on (JSON)
    BEGIN = 1  # S: the parameters of the request (JSON)
    AUDIO = 2  # S: speech to recognise; W: synthesised speech (PCM16)
    FINISH = 3  # S: asks for the transcript; FINAL repeats the payload
    PARTIAL = 4  # W: the text so far (UTF-8)
    FINAL = 5  # W: the transcript (JSON)
    WORDS = 6  # W: the words that begin in the AUDIO that follows (JSON)
    CREDIT = 7  # that many more bytes of AUDIO may be sent (u32)
    DONE = 8  # W: the request is complete
    FAIL = 9  # W: the request failed; the reason (UTF-8)
    END = 10  # S: drop the channel
    ALIVE = 11  # S: a ping; W: its answer, also sent without a ping where a step takes long


@dataclass(frozen=True, slots=True)
class IpcFrame:
    kind: FrameType
    channel: int
    payload: bytes


def pack(kind: FrameType, channel: int, payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    return HEADER.pack(kind, channel, len(payload)) + payload


def unpack(buffer: bytearray) -> Iterator[IpcFrame]:
    """Remove the complete frames from `buffer` and yield them."""
    while len(buffer) >= HEADER.size:
        kind, channel, length = HEADER.unpack_from(buffer)
        end = HEADER.size + length
        if len(buffer) < end:
            return
        payload = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        yield IpcFrame(FrameType(kind), channel, payload)


class WorkerPipe:
    """The worker process's end: frames in on standard input, frames out on standard output.

    Exits the process when the server is gone, for whatever reason: there is nothing to save. Answers pings by
    itself whenever the process reads here.
    """

    def __init__(self) -> None:
        # Ctrl-C reaches the whole process group, but the server decides when its processes end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_blocking(0, False)
        self._buffer = bytearray()
        # C libraries print to standard output; redirect that, so that it cannot get between the frames.
        self._out = os.dup(1)
        os.dup2(2, 1)

    def receive(self, wait_s: float | None = 0) -> Iterator[IpcFrame]:
        """The frames that have arrived. Waits at most `wait_s` seconds (None: for ever) for the first bytes."""
        if select.select([0], [], [], wait_s)[0]:
            data = os.read(0, 1 << 18)
            if not data:
                os._exit(0)
            self._buffer += data
        for frame in unpack(self._buffer):
            if frame.kind is FrameType.ALIVE:
                self.send(FrameType.ALIVE, frame.channel)
            else:
                yield frame

    def send(self, kind: FrameType, channel: int, payload: bytes = b"") -> None:
        """Write a frame; blocks while the pipe is full."""
        data = memoryview(pack(kind, channel, payload))
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError:
            os._exit(0)


async def log_lines(stderr: StreamReader) -> AsyncGenerator[str]:
    """A process's standard error, line by line, without empty lines.

    A carriage return ends a line too: progress bars use it.
    """
    rest = b""
    while data := await stderr.read(MAX_LOG_LINE):
        *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LOG_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if text := line.decode(errors="replace").strip():
                yield text
    if text := rest.decode(errors="replace").strip():
        yield text
