"""What the server and its speech processes say to each other: length-prefixed frames over two pipes."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("<BII")
"""Kind, channel, length of the payload."""


class FrameType(IntEnum):
    """R: from the server. S: from the process. Every channel is one request, opened by the server."""

    READY = 0  # S: loaded; the payload describes what there is (JSON)
    BEGIN = 1  # R: what the channel is about (JSON)
    AUDIO = 2  # R: speech to understand; S: speech spoken (PCM16)
    FINISH = 3  # R: the transcript, please; the payload comes back in FINAL
    PARTIAL = 4  # S: understood so far (UTF-8)
    FINAL = 5  # S: the transcript (JSON)
    WORDS = 6  # S: the words that begin in the AUDIO that follows (JSON)
    CREDIT = 7  # that many more bytes of AUDIO may be sent (u32)
    DONE = 8  # S: all was said
    FAIL = 9  # S: it went wrong; the reason (UTF-8)
    END = 10  # R: forget the channel
    ALIVE = 11  # R: are you there? S: yes, also unasked where a step took long


@dataclass(frozen=True, slots=True)
class IpcFrame:
    kind: FrameType
    channel: int
    payload: bytes


def pack(kind: FrameType, channel: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(payload)) + payload


def unpack(buffer: bytearray) -> Iterator[IpcFrame]:
    """Take the whole frames out of `buffer`."""
    while len(buffer) >= HEADER.size:
        kind, channel, length = HEADER.unpack_from(buffer)
        end = HEADER.size + length
        if len(buffer) < end:
            return
        payload = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        yield IpcFrame(FrameType(kind), channel, payload)


class WorkerPipe:
    """The process's end: frames in on standard input, frames out on standard output.

    Ends the process when the server is gone, however it went: there is nothing to save. Says by itself that the process
    is alive, whenever that looks here.
    """

    def __init__(self) -> None:
        # Ctrl-C reaches the whole process group, and it is the server that decides what to do about it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_blocking(0, False)
        self._buffer = bytearray()
        # C libraries print; what they print must not get between the frames.
        self._out = os.dup(1)
        os.dup2(2, 1)

    def take(self, wait_s: float | None = 0) -> Iterator[IpcFrame]:
        """The frames that have come, after waiting so long (None: for ever) for the first bytes."""
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
        data = memoryview(pack(kind, channel, payload))
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError:
            os._exit(0)
