"""The voice's own process: espeak-ng (GPL-3) stays apart from the server, and speaks no further than it is asked to."""

from __future__ import annotations

import ctypes
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import espeakng_loader

from echosight.engines.runtime.ipc import FrameType, IpcFrame, WorkerPipe

SYNCHRONOUS, UTF8, RATE = 2, 1, 1
WORD = 1
WORDS_A_MINUTE = 175
LONGEST_TEXT = 200
"""Characters spoken in one go: some 14 s of speech, made in about 10 ms."""


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
    """A text to speak. `made` is spoken and waits for credit: at most one go's worth."""

    channel: int
    text: str
    voices: list[str]
    words_a_minute: int
    credit: int
    at: int = 0
    samples: int = 0
    go_at: int = 0
    go_samples: int = 0
    made: deque[tuple[list[tuple[int, int, int]], bytes]] = field(default_factory=deque)

    def next_go(self) -> str:
        """The text up to the last space before it gets too long."""
        go = self.text[self.at : self.at + LONGEST_TEXT]
        if len(go) == LONGEST_TEXT and " " in go:
            go = go[: go.rindex(" ") + 1]
        self.go_at, self.go_samples = self.at, self.samples
        self.at += len(go)
        return go


class Speaker:
    """Speaks for many requests, each as far as its reader gave credit."""

    def __init__(self, pipe: WorkerPipe) -> None:
        self._pipe = pipe
        self._jobs: dict[int, Job] = {}
        self._current: Job | None = None
        self._speak = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate: int = self._speak.espeak_Initialize(SYNCHRONOUS, 20, data, 0)
        if self.rate <= 0:
            raise SystemExit(f"espeak-ng finds no voices in {data.decode()}")
        self._callback = _Callback(self._on_speech)
        self._speak.espeak_SetSynthCallback(self._callback)

    def run(self) -> None:
        self._pipe.send(FrameType.READY, 0, json.dumps({"rate": self.rate, "voices": self._voices()}).encode())
        while True:
            able = [job for job in self._jobs.values() if job.credit > 0]
            self._take(0 if able else None)
            if able:
                # Whoever has had least comes first: the first sound of an answer is what somebody waits for.
                self._advance(min(able, key=lambda job: job.samples))

    def _take(self, wait_s: float | None = 0) -> None:
        for frame in self._pipe.take(wait_s):
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
        self._flush(job)
        if job.made or job.channel not in self._jobs:
            return
        if job.at >= len(job.text):
            del self._jobs[job.channel]
            self._pipe.send(FrameType.DONE, job.channel)
            return
        self._choose_voice(job)
        self._current = job
        text = job.next_go().replace("\0", " ").encode(errors="replace") + b"\0"
        error = self._speak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, UTF8, None, None)
        if error and self._jobs.pop(job.channel, None):
            self._pipe.send(FrameType.FAIL, job.channel, f"espeak-ng reports error {error}".encode())

    def _on_speech(self, samples: Any, count: int, events: Any) -> int:
        """espeak hands over 60 ms or less; anything but 0 makes it stop."""
        job = self._current
        assert job
        words = []
        for event in events:
            if event.type == 0:
                break
            if event.type == WORD:
                words.append((event.sample + job.go_samples, event.text_position - 1 + job.go_at, event.length))
        pcm = ctypes.string_at(samples, 2 * count) if samples else b""
        job.samples += count if samples else 0
        if pcm or words:
            job.made.append((words, pcm))
            self._flush(job)
        self._take()
        return int(job.channel not in self._jobs)

    def _flush(self, job: Job) -> None:
        while job.made and job.credit > 0:
            words, pcm = job.made.popleft()
            if words:
                self._pipe.send(FrameType.WORDS, job.channel, json.dumps(words).encode())
            if pcm:
                self._pipe.send(FrameType.AUDIO, job.channel, pcm)
                job.credit -= len(pcm)

    def _choose_voice(self, job: Job) -> None:
        """The first of the names that espeak knows."""
        for name in job.voices:
            if self._speak.espeak_SetVoiceByName(name.encode()) == 0:
                break
        self._speak.espeak_SetParameter(RATE, job.words_a_minute, 0)

    def _voices(self) -> list[str]:
        self._speak.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        names = []
        for voice in self._speak.espeak_ListVoices(None):
            if not voice:
                break
            # A priority byte, then the name of the language.
            names.append(voice.contents.languages[1:].decode())
        return sorted(set(names))


if __name__ == "__main__":
    Speaker(WorkerPipe()).run()
