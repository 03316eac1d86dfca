"""Recordings and feedback on disk, written outside the event loop. Without recording, only feedback is written.

A session's folder holds ``in.wav`` and ``out.wav`` (all audio of the user and of the responses, end to end), the
images, and ``events.jsonl``: every input and output in order, without its bytes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiofiles
import orjson
from aiofiles.os import wrap
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from echosight.audio.formats import wav_header
from echosight.audio.resampling import Resampler
from echosight.conversation import to_chunk
from echosight.errors import InputError
from echosight.events import AddItem, Audio, Image, Input, Output, ResponseEnded, ResponseStarted, SpeechDelta
from echosight.media import AudioChunk, ImageFrame

log = logging.getLogger(__name__)

_WRITE_INTERVAL_S = 0.25
_MAX_PENDING_BYTES = 16 << 20
_MAX_FEEDBACK_BYTES = 64 << 10
_UNKNOWN_SIZE = 0xFFFFFFFF - 36
_WAV_HEADER_BYTES = 44


class Recorder:
    """The recordings of one server, in `folder`: one folder for each session, and one file of feedback.

    When a recording begins or ends, the oldest ones are deleted until the rest is younger than `max_age_s` and no
    larger than `max_bytes`; a recording in progress stops at that size.
    """

    def __init__(self, folder: Path, *, record: bool = False, max_bytes: int = 1 << 30, max_age_s: float = 30 * 86_400):
        self.folder = folder
        self.record = record
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._open: set[SessionRecording] = set()
        self._feedback_lock = asyncio.Lock()
        self._prune_lock = asyncio.Lock()

    def open(self, session_id: str) -> SessionRecording | None:
        """Start recording a session; None where recording is off."""
        if not self.record:
            return None
        recording = SessionRecording(self, session_id)
        self._open.add(recording)
        return recording

    async def feedback(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line to ``feedback.jsonl``. Raises `InputError` unless it is JSON of at most 64 KiB."""
        try:
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise InputError("Feedback must be plain JSON") from error
        if len(line) > _MAX_FEEDBACK_BYTES:
            raise InputError("Feedback is too long", status=413)
        async with self._feedback_lock:
            await wrap(self.folder.mkdir)(parents=True, exist_ok=True)
            async with aiofiles.open(self.folder / "feedback.jsonl", "ab") as file:
                await file.write(line)

    async def close(self) -> None:
        """End every recording; returns once they are on disk."""
        await asyncio.gather(*(recording.close() for recording in self._open))

    def on_closed(self, recording: SessionRecording) -> None:
        self._open.discard(recording)

    async def prune(self) -> None:
        """Delete recordings that are too old, or too large together."""
        async with self._prune_lock:
            in_progress = {recording.folder for recording in self._open}
            try:
                await wrap(_prune)(self.folder, in_progress, self.max_bytes, time.time() - self.max_age_s)
            except OSError as error:
                log.warning("Old recordings could not be deleted: %s", error)


class SessionRecording:
    """One session's recording. `write` never waits: with a slow disk, events are dropped and counted."""

    def __init__(self, recorder: Recorder, session_id: str) -> None:
        self.folder = recorder.folder / folder_name(session_id)
        self.dropped = 0
        self._recorder = recorder
        self._pending: dict[str, list[bytes]] = {}
        self._pending_bytes = 0
        self._written = 0
        self._image_count = 0
        self._out_of_band: set[str] = set()
        """Responses out of band in progress: their speech would cut into that of the conversation's responses."""
        self._rates: dict[str, int] = {}
        self._resamplers: dict[tuple[str, int], Resampler] = {}
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"recording {self.folder.name}")

    def write(self, event: Input | Output) -> None:
        """Record an event, with the audio or images that it carries."""
        files: dict[str, bytes] = {}
        images: dict[str, bytes] = {}
        match event:
            case Audio(chunk):
                files["in.wav"] = self._at_track_rate("in.wav", chunk)
            case ResponseStarted(response_id, conversation=False):
                self._out_of_band.add(response_id)
            case ResponseEnded(response_id):
                self._out_of_band.discard(response_id)
            case SpeechDelta(response_id, chunk=chunk) if response_id not in self._out_of_band:
                files["out.wav"] = self._at_track_rate("out.wav", chunk)
            case Image(frame):
                images = self._name_images([frame])
            case AddItem(item):  # a whole turn at once
                if item.audio is not None:
                    files["in.wav"] = self._at_track_rate("in.wav", to_chunk(item.audio))
                images = self._name_images(item.images)
        line = {"event": type(event).__name__, "time": round(time.time(), 3), **to_jsonable(event)}
        if images:
            line |= {"file": next(iter(images))} if len(images) == 1 else {"files": list(images)}
        files |= images
        files["events.jsonl"] = orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE)
        self._put(files)

    async def close(self) -> None:
        """Write all pending events and complete the files."""
        self._closing.set()
        self._wake.set()
        await asyncio.shield(self._task)

    def _name_images(self, frames: Sequence[ImageFrame]) -> dict[str, bytes]:
        """Images by their file names."""
        first, self._image_count = self._image_count + 1, self._image_count + len(frames)
        return {f"image-{n:04}.{f.media_type.rpartition('/')[2]}": f.data for n, f in enumerate(frames, first)}

    def _at_track_rate(self, name: str, chunk: AudioChunk) -> bytes:
        """PCM at the sample rate of the track's first chunk."""
        rate = self._rates.setdefault(name, chunk.rate)
        if chunk.rate == rate:
            return chunk.pcm
        return self._resamplers.setdefault((name, chunk.rate), Resampler(chunk.rate, rate)).push(chunk.pcm)

    def _put(self, files: Mapping[str, bytes]) -> None:
        size = sum(map(len, files.values()))
        full = self._written + size > self._recorder.max_bytes
        if full or self._task.done() or (self._pending_bytes and self._pending_bytes + size > _MAX_PENDING_BYTES):
            if not self.dropped:
                log.warning("Recording %s is incomplete: the disk is too slow, full or gone", self.folder.name)
            self.dropped += 1
            return
        for name, data in files.items():
            self._pending.setdefault(name, []).append(data)
        self._pending_bytes += size
        self._written += size
        self._wake.set()

    async def _run(self) -> None:
        try:
            await self._recorder.prune()
            await wrap(self.folder.mkdir)(mode=0o700, parents=True)
            async with AsyncExitStack() as files:
                await self._write_all(files)
        except OSError as error:
            log.warning("Recording %s stopped: %s", self.folder.name, error)
        finally:
            self._recorder.on_closed(self)
        if self.dropped:
            log.warning("Recording %s lacks %d events", self.folder.name, self.dropped)
        await self._recorder.prune()

    async def _write_all(self, files: AsyncExitStack) -> None:
        """Write in batches: one hop to a thread for each file and batch, not for each event."""
        opened: dict[str, AsyncBufferedIOBase] = {}
        while not self._closing.is_set() or self._pending:
            await self._wake.wait()
            self._wake.clear()
            await _wait_at_most(self._closing, _WRITE_INTERVAL_S)
            batch, self._pending = self._pending, {}
            for name, chunks in batch.items():
                data = b"".join(chunks)
                if name.startswith("image"):
                    async with aiofiles.open(self.folder / name, "wb") as image:
                        await image.write(data)
                else:
                    if name not in opened:
                        opened[name] = await files.enter_async_context(_file(self.folder / name, self._rates.get(name)))
                    await opened[name].write(data)
                self._pending_bytes -= len(data)


@asynccontextmanager
async def _file(path: Path, rate: int | None) -> AsyncIterator[AsyncBufferedIOBase]:
    """A file to append to. With a sample rate it is a WAV file, whose header gets its length on closing."""
    async with aiofiles.open(path, "wb") as file:
        if rate is None:
            yield file
            return
        await file.write(wav_header(rate, _UNKNOWN_SIZE))
        try:
            yield file
        finally:
            size = await file.tell() - _WAV_HEADER_BYTES
            await file.seek(0)
            await file.write(wav_header(rate, min(size, _UNKNOWN_SIZE)))


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def folder_name(session_id: str) -> str:
    """A readable and safe folder name for any session id, different for every id and time."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", session_id)[:40]
    digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable}-{digest}-{time.time_ns():x}"


def to_jsonable(value: Any) -> Any:
    """An event as JSON values; bytes as their number only."""
    match value:
        case bytes() | bytearray():
            return {"bytes": len(value)}
        case tuple() | list():
            return [to_jsonable(v) for v in value]
        case Mapping():
            return {str(k): to_jsonable(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _prune(folder: Path, in_progress: set[Path], max_bytes: int, oldest: float) -> None:
    """Delete session folders that ended before `oldest` (Unix time), then the oldest ones beyond `max_bytes`."""
    if not folder.is_dir():
        return
    found = []
    for session in folder.iterdir():
        if session.is_dir() and not session.is_symlink():
            stats = [file.stat() for file in session.iterdir()]
            found.append((max((s.st_mtime for s in stats), default=0), sum(s.st_size for s in stats), session))
    total = sum(size for _, size, _ in found)
    for ended, size, session in sorted(found):
        if session not in in_progress and (ended < oldest or total > max_bytes):
            shutil.rmtree(session, ignore_errors=True)
            total -= size
