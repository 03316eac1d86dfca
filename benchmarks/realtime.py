"""The Realtime protocol as a dialect of the load benchmark: base64 in JSON, 24 kHz both ways."""

from __future__ import annotations

import base64

from benchmarks.users import TEXT, Dialect, framed

_HELLO = (
    b'{"type":"session.update","session":{"type":"realtime","audio":{"input":{"transcription":{"model":"whisper-1"},'
    b'"turn_detection":{"type":"server_vad","silence_duration_ms":400}}}}}'
)


class Realtime(Dialect):
    """What a stock client sends and reads."""

    path = "/v1/realtime"
    rate = 24_000

    def hello(self) -> bytes | None:
        return framed(TEXT, _HELLO)

    def frame(self, pcm: bytes) -> bytes:
        audio = base64.b64encode(pcm)
        return framed(TEXT, b'{"type":"input_audio_buffer.append","audio":"%b"}' % audio)

    def speech(self, opcode: int, message: bytes) -> int:
        if message.find(b'"type":"response.output_audio.delta"', 0, 120) < 0:
            return 0
        at = message.rfind(b'"delta":"') + 9
        return (message.find(b'"', at) - at) * 3 // 4

    def interrupted(self, opcode: int, message: bytes) -> bool:
        return message.find(b'"type":"response.done"', 0, 120) > 0 and b'"status":"cancelled"' in message
