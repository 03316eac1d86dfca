"""The TTS process: espeak-ng (GPL-3) stays out of the server. It synthesises as far as its readers gave credit."""

from __future__ import annotations

import ctypes
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import espeakng_loader

from echosight.engines.runtime.ipc import FrameType, IpcFrame, WorkerPipe

# Constants of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
RATE_PARAMETER = 1
EVENT_LIST_TERMINATED, EVENT_WORD = 0, 1

BUFFER_MS = 20
MAX_CALL_CHARS = 200
"""Characters synthesised in one call: about 14 s of speech, which take about 10 ms."""


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class _Voice(ctypes.Structure):
    """`espeak_VOICE` of speak_lib.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(slots=True)
class Job:
    """A text to speak. `unsent` is synthesised and waits for credit: at most the speech of one call.

    Its elements are words as (sample, index in the text, length), and PCM16.
    """

    channel: int
    text: str
    voices: list[str]
    words_per_minute: int
    credit: int
    text_index: int = 0
    samples: int = 0
    call_text_index: int = 0
    call_samples: int = 0
    unsent: deque[tuple[list[tuple[int, int, int]], bytes]] = field(default_factory=deque)

    def next_call_text(self) -> str:
        """The text of the next call, up to the last space before it gets too long."""
        text = self.text[self.text_index : self.text_index + MAX_CALL_CHARS]
        if len(text) == MAX_CALL_CHARS and " " in text:
            text = text[: text.rindex(" ") + 1]
        self.call_text_index, self.call_samples = self.text_index, self.samples
        self.text_index += len(text)
        return text


class Synthesizer:
    """Speaks for many requests, each as far as its reader gave credit."""

    def __init__(self, pipe: WorkerPipe) -> None:
        self._pipe = pipe
        self._jobs: dict[int, Job] = {}
        self._current: Job | None = None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = espeakng_loader.get_data_path().encode()
        self.rate: int = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, data_path, 0)
        if self.rate <= 0:
            raise SystemExit(f"espeak-ng finds no voices in {data_path.decode()}")
        self._callback = _Callback(self._on_speech)
        self._library.espeak_SetSynthCallback(self._callback)

    def run(self) -> None:
        ready = {"rate": self.rate, "voices": self._voices()}
        self._pipe.send(FrameType.READY, 0, json.dumps(ready).encode())
        while True:
            runnable = [job for job in self._jobs.values() if job.credit > 0]
            self._receive_frames(0 if runnable else None)
            if runnable:
                # The job with the least speech so far goes first: a user is waiting for a response's first sound.
                self._advance(min(runnable, key=lambda job: job.samples))

    def _receive_frames(self, wait_s: float | None = 0) -> None:
        for frame in self._pipe.receive(wait_s):
            self._receive(frame)

    def _receive(self, frame: IpcFrame) -> None:
        match frame.kind:
            case FrameType.BEGIN:
                self._jobs[frame.channel] = Job(frame.channel, **json.loads(frame.payload))
            case FrameType.CREDIT if job := self._jobs.get(frame.channel):
                job.credit += int.from_bytes(frame.payload, "little")
            case FrameType.END:
                self._jobs.pop(frame.channel, None)

    def _advance(self, job: Job) -> None:
        self._send_unsent(job)
        if job.unsent or job.channel not in self._jobs:
            return
        if job.text_index >= len(job.text):
            del self._jobs[job.channel]
            self._pipe.send(FrameType.DONE, job.channel)
            return
        self._choose_voice(job)
        self._current = job
        text = job.next_call_text().replace("\0", " ").encode(errors="replace") + b"\0"
        size = ctypes.c_size_t(len(text))
        error = self._library.espeak_Synth(text, size, 0, 1, 0, CHARS_UTF8, None, None)
        if error and self._jobs.pop(job.channel, None):
            self._pipe.send(FrameType.FAIL, job.channel, f"espeak-ng reports error {error}".encode())

    def _on_speech(self, samples: Any, count: int, events: Any) -> int:
        """espeak's callback, with 60 ms of speech at most. Any result but 0 stops the synthesis."""
        job = self._current
        assert job
        words = []
        for event in events:
            if event.type == EVENT_LIST_TERMINATED:
                break
            if event.type == EVENT_WORD:
                index = event.text_position - 1 + job.call_text_index
                words.append((event.sample + job.call_samples, index, event.length))
        pcm = ctypes.string_at(samples, 2 * count) if samples else b""
        job.samples += count if samples else 0
        if pcm or words:
            job.unsent.append((words, pcm))
            self._send_unsent(job)
        self._receive_frames()
        return int(job.channel not in self._jobs)

    def _send_unsent(self, job: Job) -> None:
        while job.unsent and job.credit > 0:
            words, pcm = job.unsent.popleft()
            if words:
                self._pipe.send(FrameType.WORDS, job.channel, json.dumps(words).encode())
            if pcm:
                self._pipe.send(FrameType.AUDIO, job.channel, pcm)
                job.credit -= len(pcm)

    def _choose_voice(self, job: Job) -> None:
        """The first of the names that espeak knows."""
        for name in job.voices:
            if self._library.espeak_SetVoiceByName(name.encode()) == 0:
                break
        self._library.espeak_SetParameter(RATE_PARAMETER, job.words_per_minute, 0)

    def _voices(self) -> list[str]:
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        names = []
        for voice in self._library.espeak_ListVoices(None):
            if not voice:
                break
            # A priority byte, then the name of the language.
            names.append(voice.contents.languages[1:].decode())
        return sorted(set(names))


if __name__ == "__main__":
    Synthesizer(WorkerPipe()).run()
