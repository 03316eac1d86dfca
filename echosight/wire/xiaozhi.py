"""The dialect of the xiaozhi firmware for ESP32: Opus packets in three framings, listen and abort, stt, llm and tts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from echosight import events as ev
from echosight.audio.opus import FRAME_MS, OpusDecoder, OpusEncoder
from echosight.engines.cascade.sentences import Sentence, SentenceSplitter
from echosight.errors import WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges
from echosight.wire import Message
from echosight.wire.fields import Json, read_json, write_json

OUTPUT_RATE = 24_000
"""Rate of the speech that devices are sent, which the hello announces, Hz."""

EMPTY_TURN = "input_audio_buffer_commit_empty"
_HEADER_2 = struct.Struct(">HHIII")
_HEADER_3 = struct.Struct(">BBH")


@dataclass(frozen=True, slots=True)
class Hello:
    """What the first message of a device says. `version` is the framing of its binary messages, 1 to 3."""

    version: int = 1
    sample_rate: int = INPUT_SAMPLE_RATE


def read_hello(message: Message, default_version: int = 1) -> Hello:
    """The first message of a connection; `default_version` is that of the connection's header. Raises `WireError`."""
    body = None if isinstance(message, bytes) else read_json(message)
    if not isinstance(body, dict) or body.get("type") != "hello":
        raise WireError('The first message must be {"type": "hello", …}', code="handshake_required", param="type")
    audio = body.get("audio_params", {})
    if not isinstance(audio, dict) or audio.get("format", "opus") != "opus" or audio.get("channels", 1) != 1:
        raise WireError("audio_params must be mono Opus", param="audio_params")
    version, rate = body.get("version", default_version), audio.get("sample_rate", INPUT_SAMPLE_RATE)
    if version not in (1, 2, 3) or isinstance(version, bool | float):
        raise WireError("version must be 1, 2 or 3", param="version")
    if rate not in (8_000, 12_000, 16_000, 24_000, 48_000):
        raise WireError("sample_rate must be a rate of Opus", param="audio_params.sample_rate")
    return Hello(version, int(rate))


def unframe(version: int, message: bytes) -> tuple[bool, bytes]:
    """(whether it is JSON, payload) of a binary message. Raises `WireError` for a wrong header."""
    if version == 1:
        return False, message
    header = _HEADER_2 if version == 2 else _HEADER_3
    if len(message) >= header.size:
        fields = header.unpack_from(message)
        kind, size = (fields[1] if version == 2 else fields[0]), fields[-1]
        payload = message[header.size :]
        if len(payload) == size and kind in (0, 1):
            return kind == 1, payload
    raise WireError(f"Not a binary message of version {version}")


def frame(version: int, packet: bytes) -> bytes:
    """An Opus packet as a binary message."""
    match version:
        case 2:
            return _HEADER_2.pack(2, 0, 0, 0, len(packet)) + packet
        case 3:
            return _HEADER_3.pack(0, 0, len(packet)) + packet
        case _:
            return packet


class XiaozhiWire:
    """One connection of a device whose `hello` was accepted.

    ``auto`` and ``realtime`` listening leave the end of a turn to the server, ``manual`` listening ends it by ``stop``.
    A device drops audio until it is sent ``tts`` ``start``, and listens again after ``tts`` ``stop``: each response
    has exactly one of both.
    """

    def __init__(self, hello: Hello, session_id: str) -> None:
        self.client_event_id: str | None = None
        self._hello = hello
        self._session_id = session_id
        self._decoder = OpusDecoder(INPUT_SAMPLE_RATE)
        self._encoder = OpusEncoder(OUTPUT_RATE)
        self._mode = "auto"
        self._listening = False
        self._user_item: str | None = None
        self._speaking = False
        self._splitter = SentenceSplitter()

    def greet(self) -> tuple[Message, ...]:
        audio = {"format": "opus", "sample_rate": OUTPUT_RATE, "channels": 1, "frame_duration": FRAME_MS}
        return (self._write("hello", transport="websocket", audio_params=audio),)

    def _write(self, kind: str, **fields: Any) -> str:
        return write_json({"type": kind, **fields, "session_id": self._session_id})

    # --- receiving ------------------------------------------------------------------------------

    def receive(self, message: Message) -> Iterator[ev.Input]:
        if isinstance(message, bytes):
            is_json, payload = unframe(self._hello.version, message)
            if is_json:
                yield from self._receive_json(read_json(payload))
            elif self._listening:
                yield ev.Audio(AudioChunk(self._decoder.decode(payload)))
            return
        yield from self._receive_json(read_json(message))

    def _receive_json(self, body: Any) -> Iterator[ev.Input]:
        match body:
            case {"type": "listen", "state": "start"}:
                yield from self._listen(body)
            case {"type": "listen", "state": "stop"}:
                self._listening = False
                if self._mode == "manual":
                    yield ev.CommitInput()
                    yield ev.CreateResponse(interrupt=True)
            case {"type": "listen", "state": "detect", "text": str(wake_word)} if wake_word.strip():
                yield ev.Cancel()
                yield ev.Text(wake_word)
                yield ev.CommitInput()
                yield ev.CreateResponse(interrupt=True)
            case {"type": "listen", "state": "detect"}:
                yield ev.Cancel()
            case {"type": "abort"}:
                yield ev.Cancel()
            case {"type": "mcp" | "goodbye"}:
                return  # the device's own tools are not used
            case {"type": "hello"}:
                raise WireError("This connection has its session; open another one", code="already_connected")
            case {"type": str(kind)}:
                raise WireError(f"Unknown message type {kind[:40]!r}", code="unknown_type", param="type")
            case _:
                raise WireError("A message is Opus or a JSON object with a type", param="type")

    def _listen(self, body: Json) -> Iterator[ev.Input]:
        mode = body.get("mode", "auto")
        if mode not in ("auto", "manual", "realtime"):
            raise WireError("mode must be 'auto', 'manual' or 'realtime'", param="mode")
        self._mode, self._listening = mode, True
        changes: SessionChanges = {"turn_detection": None if mode == "manual" else {}}
        yield ev.UpdateOptions(changes)
        if mode == "manual":
            yield ev.Cancel()
            yield ev.ClearInput()

    # --- sending --------------------------------------------------------------------------------

    def send(self, event: ev.Output) -> Iterator[Message]:
        match event:
            case ev.InputCommitted(item_id):
                self._user_item = item_id
                if self._mode == "auto":
                    self._listening = False  # half duplex, until the device says `listen` again
            case ev.TranscriptUpdated(item_id, transcript) if transcript.final and item_id == self._user_item:
                yield self._write("stt", text=transcript.text)
            case ev.TextDelta(text=text):
                yield from self._start()
                yield from self._show(self._splitter.push(text))
            case ev.SpeechDelta(chunk=chunk):
                yield from self._start()
                for packet in self._encoder.push(chunk.pcm):
                    yield frame(self._hello.version, packet)
            case ev.ResponseEnded():
                yield from self._end(event)
            case ev.ErrorRaised():
                message = "No speech arrived" if event.code == EMPTY_TURN else event.message
                yield self._write("alert", status="error", message=message, emotion="sad")
            case _:
                pass

    def _start(self) -> Iterator[str]:
        if not self._speaking:
            self._speaking = True
            self._splitter = SentenceSplitter()
            self._encoder.clear()
            yield self._write("llm", emotion="neutral", text="🙂")
            yield self._write("tts", state="start")

    def _show(self, sentences: list[Sentence]) -> Iterator[str]:
        for sentence in sentences:
            yield self._write("tts", state="sentence_start", text=sentence.text)

    def _end(self, event: ev.ResponseEnded) -> Iterator[Message]:
        if event.outcome == "failed":
            message = event.error or "The response failed"
            yield self._write("alert", status="error", message=message, emotion="sad")
        elif event.outcome != "cancelled" and self._speaking:
            yield from self._show(self._splitter.flush())
            for packet in self._encoder.flush():
                yield frame(self._hello.version, packet)
        yield from self._start()
        self._speaking = False
        yield self._write("tts", state="stop")
