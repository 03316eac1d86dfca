"""The Realtime protocol as a dialect of the load benchmark: base64 in JSON, 24 kHz both ways."""

from __future__ import annotations

import base64

from benchmarks.users import TEXT, Dialect, encode_frame

_SESSION_UPDATE = (
    b'{"type":"session.update","session":{"type":"realtime","audio":{"input":{"transcription":{"model":"whisper-1"},'
    b'"turn_detection":{"type":"server_vad","silence_duration_ms":400}}}}}'
)


class Realtime(Dialect):
    """The messages of an unmodified Realtime client."""

    path = "/v1/realtime"
    rate = 24_000

    def subscribe_message(self) -> bytes | None:
        return encode_frame(TEXT, _SESSION_UPDATE)

    def frame(self, pcm: bytes) -> bytes:
        audio = base64.b64encode(pcm)
        return encode_frame(TEXT, b'{"type":"input_audio_buffer.append","audio":"%b"}' % audio)

    def speech_bytes(self, opcode: int, message: bytes) -> int:
        if message.find(b'"type":"response.output_audio.delta"', 0, 120) < 0:
            return 0
        start = message.rfind(b'"delta":"') + 9
        return (message.find(b'"', start) - start) * 3 // 4

    def is_interruption(self, opcode: int, message: bytes) -> bool:
        return message.find(b'"type":"response.done"', 0, 120) > 0 and b'"status":"cancelled"' in message
