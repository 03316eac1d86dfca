"""Two peers doing the same work, as servers and as dialects: `python benchmarks/peers.py pipecat|livekit PORT`.

Both are set up as their documentation asks: Silero, 400 ms endpointing, interruptions on; their transcriber, language
model and voice are stubs that cost what EchoSight's stub costs.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.users import BINARY, Dialect, framed


class LiveKit(Dialect):
    """Plain PCM16 both ways."""

    path = "/ws"

    def hello(self) -> bytes | None:
        return None

    def speech(self, opcode: int, message: bytes) -> int:
        return len(message) if opcode == BINARY and any(message[:64]) else 0

    def interrupted(self, opcode: int, message: bytes) -> bool:
        return False


class Pipecat(LiveKit):
    """Its protocol buffers: ``Frame{audio = 2: AudioRawFrame{audio = 3, sample_rate = 4, num_channels = 5}}``."""

    def frame(self, pcm: bytes) -> bytes:
        raw = b"\x1a" + varint(len(pcm)) + pcm + b"\x20" + varint(16_000) + b"\x28\x01"
        return framed(BINARY, b"\x12" + varint(len(raw)) + raw)

    def speech(self, opcode: int, message: bytes) -> int:
        if opcode != BINARY or message[:1] != b"\x12":
            return 0
        _, at = read_varint(message, 1)
        while at < len(message):
            key = message[at]
            value, at = read_varint(message, at + 1)
            if key == 0x1A:
                return value if any(message[at : at + 64]) else 0
            at += value if key & 7 == 2 else 0
        return 0


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return number, at


if __name__ == "__main__":
    peer = importlib.import_module(f"benchmarks.peer_{sys.argv[1]}")
    asyncio.run(peer.server(int(sys.argv[2])).serve())
