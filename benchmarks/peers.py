"""Two peers with the same workload, servers and dialects: `python benchmarks/peers.py pipecat|livekit PORT`.

Both follow their documentation: Silero, 400 ms endpointing, interruptions enabled. Their STT, LLM and TTS are stubs
with the same latencies as EchoSight's stub.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.users import BINARY, Dialect, encode_frame


class LiveKit(Dialect):
    """PCM16 in both directions."""

    path = "/ws"

    def subscribe_message(self) -> bytes | None:
        return None

    def speech_bytes(self, opcode: int, message: bytes) -> int:
        return len(message) if opcode == BINARY and any(message[:64]) else 0

    def is_interruption(self, opcode: int, message: bytes) -> bool:
        return False


class Pipecat(LiveKit):
    """Protocol buffers: ``Frame{audio = 2: AudioRawFrame{audio = 3, sample_rate = 4, num_channels = 5}}``."""

    def frame(self, pcm: bytes) -> bytes:
        raw = b"\x1a" + varint(len(pcm)) + pcm + b"\x20" + varint(16_000) + b"\x28\x01"
        return encode_frame(BINARY, b"\x12" + varint(len(raw)) + raw)

    def speech_bytes(self, opcode: int, message: bytes) -> int:
        if opcode != BINARY or message[:1] != b"\x12":
            return 0
        _, offset = read_varint(message, 1)
        while offset < len(message):
            key = message[offset]
            value, offset = read_varint(message, offset + 1)
            if key == 0x1A:
                return value if any(message[offset : offset + 64]) else 0
            offset += value if key & 7 == 2 else 0
        return 0


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def read_varint(message: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (message[offset] & 127) << shift
        offset, shift = offset + 1, shift + 7
        if message[offset - 1] < 128:
            return number, offset


if __name__ == "__main__":
    peer = importlib.import_module(f"benchmarks.peer_{sys.argv[1]}")
    asyncio.run(peer.server(int(sys.argv[2])).serve())
