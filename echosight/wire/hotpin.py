"""The Hotpin dialect of small devices: a handshake, PCM16 until ``EOS``, stages in JSON, and the response as a WAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from echosight import events as ev
from echosight.audio.formats import wav_header
from echosight.audio.opus import OPUS_RATES, OpusDecoder, OpusEncoder, require_opus
from echosight.errors import WireError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import SessionChanges, SessionOptions
from echosight.wire import Message
from echosight.wire.fields import (
    Json,
    WholeSamples,
    check_session_id,
    optional_field,
    optional_rate,
    read_json,
    write_json,
)

CHUNK_BYTES = 4096
"""Size of the binary messages that carry a response; only the last one of a response is shorter."""

UNKNOWN_LENGTH = 0xFFFF_FFFF - 36
"""What the WAV header, which is sent before the length is known, says of the samples; its RIFF length is 2**32-1."""

EMPTY_TURN = "input_audio_buffer_commit_empty"
TOO_LONG = "input_audio_buffer_too_long"
_MESSAGES = {
    EMPTY_TURN: "EOS without speech: send the user's speech in binary messages before EOS",
    TOO_LONG: "The turn is too long: send EOS to end it, or RESET to drop it",
}
"""Errors of the session whose own messages speak of other dialects."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the first message of a device chooses. Rates are in Hz; None: the server's default."""

    session_id: str
    sample_rate: int = INPUT_SAMPLE_RATE
    output_rate: int = INPUT_SAMPLE_RATE
    vad: bool = False
    language: str | None = None
    voice: str | None = None
    format: Literal["pcm16", "opus"] = "pcm16"

    def changes(self, defaults: SessionOptions) -> SessionChanges:
        """The changes of the options of a session that an earlier handshake may have changed.

        Without `vad` the device ends its turns by ``EOS``. `defaults` hold where the handshake chooses nothing.
        """
        return {
            "turn_detection": {} if self.vad else None,
            "output_sample_rate": self.output_rate,
            "instructions": defaults.instructions,
            "language": self.language or defaults.language,
            "response": {"voice": self.voice or defaults.response.voice},
        }


def read_handshake(message: Message) -> Handshake:
    """The first message of a connection. Raises `WireError`, and `InputError` 501 where there is no Opus."""
    if isinstance(message, bytes):
        raise WireError('Send {"session_id": "…"} before audio', code="handshake_required")
    body = read_json(message)
    if not isinstance(body, dict) or "session_id" not in body:
        raise WireError('The first message must be {"session_id": "…"}', code="handshake_required")
    session_id = check_session_id(body["session_id"])
    format = "pcm16" if body.get("format") is None else body["format"]
    if format not in ("pcm16", "opus"):
        raise WireError("format must be 'pcm16' or 'opus'", param="format")
    if format == "opus":
        require_opus()
        if body.get("output_rate") not in (None, *OPUS_RATES):
            raise WireError(
                f"output_rate of Opus must be one of {', '.join(map(str, OPUS_RATES))}", param="output_rate"
            )
    return Handshake(
        session_id,
        optional_rate(body, "sample_rate") or INPUT_SAMPLE_RATE,
        optional_rate(body, "output_rate") or INPUT_SAMPLE_RATE,
        optional_field(body, "vad", bool) or False,
        optional_field(body, "language", str),
        optional_field(body, "voice", str),
        "opus" if format == "opus" else "pcm16",
    )


def error_record(code: str, message: str) -> Json:
    """An error as devices are sent it."""
    return {"status": "error", "code": code, "message": message}


class SpeechWriter(Protocol):
    """Makes binary messages of the speech of one response."""

    def push(self, chunk: AudioChunk) -> Iterator[bytes]:
        """The messages that are full."""

    def flush(self) -> Iterator[bytes]:
        """The last message, where there is a rest."""


class OpusPackets:
    """One Opus packet a message; the last one is filled up with silence."""

    def __init__(self, encoder: OpusEncoder) -> None:
        self._encoder = encoder
        self._encoder.clear()

    def push(self, chunk: AudioChunk) -> Iterator[bytes]:
        yield from self._encoder.push(chunk.pcm)

    def flush(self) -> Iterator[bytes]:
        yield from self._encoder.flush()


class WavChunks:
    """Cuts the speech of one response into messages of `CHUNK_BYTES`; the first one begins with the WAV header."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._has_header = False

    def push(self, chunk: AudioChunk) -> Iterator[bytes]:
        if not chunk.pcm:
            return
        if not self._has_header:
            self._has_header = True
            self._buffer += wav_header(chunk.rate, UNKNOWN_LENGTH)
        self._buffer += chunk.pcm
        while len(self._buffer) >= CHUNK_BYTES:
            yield bytes(self._buffer[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]

    def flush(self) -> Iterator[bytes]:
        if self._buffer:
            yield bytes(self._buffer)
            self._buffer.clear()


class HotpinWire:
    """One connection of a device whose `handshake` was accepted.

    Each ``EOS`` ends in exactly one ``complete``, also after an error, so that a device knows when to listen again.
    Audio after ``EOS`` begins the next turn, and stops the response to the one before. With `Handshake.vad` the server
    ends the turns, and speech stops the response.
    """

    def __init__(self, handshake: Handshake) -> None:
        self.client_event_id: str | None = None
        self._handshake = handshake
        self._decoder = OpusDecoder(handshake.sample_rate) if handshake.format == "opus" else None
        self._encoder = OpusEncoder(handshake.output_rate) if handshake.format == "opus" else None
        self._whole_samples = WholeSamples()
        self._audio_interrupts = False
        """The next audio begins a turn: it stops the response that is in progress."""
        self._speaking = False
        """The server's VAD hears speech."""
        self._cut = False
        """The device has stopped the response that is in progress."""
        self._too_long = False
        """The device was sent an error about the length of the turn that it is sending."""
        self._begin_response(pending=False)

    def _begin_response(self, *, pending: bool) -> None:
        self._pending = pending
        """A turn has ended, and ``complete`` was not sent for it."""
        self._user_item: str | None = None
        self._stage = ""
        self._text = ""
        self._shown_text: str | None = None
        self._speech: SpeechWriter = WavChunks() if self._encoder is None else OpusPackets(self._encoder)

    def greet(self) -> tuple[Message, ...]:
        return (write_json({"status": "connected", "session_id": self._handshake.session_id}),)

    # --- receiving ------------------------------------------------------------------------------

    def receive(self, message: Message) -> Iterator[ev.Input]:
        if isinstance(message, bytes):
            yield from self._receive_audio(message)
            return
        match read_json(message):
            case {"signal": "EOS"}:
                yield from self._end_turn()
            case {"signal": "RESET"}:
                self._stop()
                self._new_turn()
                yield ev.Reset()
                yield ev.Sync("reset")
            case {"signal": "STOP"}:
                self._stop()
                yield ev.Cancel()
            case {"signal": signal}:
                raise WireError(f"Unknown signal {str(signal)[:40]!r}; send EOS, STOP or RESET", param="signal")
            case {"session_id": _}:
                raise WireError(
                    "This connection has its session; open another one for another session", code="already_connected"
                )
            case _:
                raise WireError('Send binary audio, or {"signal": "EOS"}, "STOP" or "RESET"')

    def _receive_audio(self, message: bytes) -> Iterator[ev.Input]:
        pcm = self._samples(message)
        if not pcm:
            return
        if self._audio_interrupts:
            self._audio_interrupts = False
            self._stop()
            yield ev.Cancel()
        yield ev.Audio(AudioChunk(pcm, self._handshake.sample_rate))

    def _samples(self, message: bytes) -> bytes:
        """Raises `InputError` for what is no Opus packet."""
        if self._decoder is not None:
            return self._decoder.decode(message)
        return self._whole_samples.push(message)

    def _end_turn(self) -> Iterator[ev.Input]:
        if self._handshake.vad and not self._speaking:
            if self._pending:
                return  # the server has found the end of the turn before the device did
            raise WireError(_MESSAGES[EMPTY_TURN], code=EMPTY_TURN)
        self._new_turn()
        yield ev.CommitInput()
        yield ev.CreateResponse(interrupt=True)

    def _new_turn(self) -> None:
        self._whole_samples.clear()
        self._audio_interrupts = not self._handshake.vad
        self._too_long = False

    def _stop(self) -> None:
        self._cut = self._pending

    # --- sending --------------------------------------------------------------------------------

    def send(self, event: ev.Output) -> Iterator[Message]:
        match event:
            case ev.SpeechStarted():
                self._speaking = True
            case ev.SpeechStopped():
                self._speaking = False
            case ev.InputCommitted(item_id):
                self._begin_response(pending=True)
                self._speaking = False
                self._user_item = item_id
                yield self._enter("transcription")
            case ev.TranscriptUpdated(item_id, transcript) if transcript.final and item_id == self._user_item:
                yield from self._enter_llm(transcript.text)
            case ev.TextDelta(text=text):
                yield from self._enter_llm("")
                self._text += text
            case ev.SpeechDelta(chunk=chunk):
                yield from self._enter_llm("")
                if self._shown_text is None:
                    yield self._show_text()
                yield from self._speech.push(chunk)
            case ev.ResponseEnded():
                yield from self._end_response(event)
            case ev.ErrorRaised():
                yield from self._report(event)
            case ev.Synced("reset"):
                yield write_json({"status": "reset"})
            case _:
                pass

    def _enter(self, stage: str, **fields: str) -> str:
        self._stage = stage
        return write_json({"status": "processing", "stage": stage, **fields})

    def _enter_llm(self, transcript: str) -> Iterator[str]:
        """An engine without speech to text responds before there is a transcript: it is then empty."""
        if self._stage == "transcription":
            yield self._enter("llm", transcript=transcript)

    def _show_text(self) -> str:
        """The stage ``tts`` with the text so far; it comes again at the end if the text has grown."""
        self._shown_text = self._text
        return self._enter("tts", response=self._text)

    def _end_response(self, event: ev.ResponseEnded) -> Iterator[Message]:
        interrupted = event.outcome == "cancelled" or self._cut
        if event.outcome == "failed":
            yield write_json(error_record(event.reason or "engine_failed", event.error or "The response failed"))
        elif not interrupted:
            if self._text != (self._shown_text or ""):
                yield self._show_text()
            yield from self._speech.flush()
        yield self._complete(interrupted)

    def _complete(self, interrupted: bool = False) -> str:
        self._begin_response(pending=False)
        self._cut = False
        return write_json({"status": "complete", **({"interrupted": True} if interrupted else {})})

    def _report(self, event: ev.ErrorRaised) -> Iterator[Message]:
        if event.code == TOO_LONG:
            if self._too_long:
                return  # once a turn: the device goes on sending, and each message is refused
            self._too_long = True
        yield write_json(error_record(event.code, _MESSAGES.get(event.code, event.message)))
        if event.code == EMPTY_TURN and not self._pending:
            yield self._complete()
