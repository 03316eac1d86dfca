"""Recordings and feedback on disk, off the event loop. Nothing is written unless recording is on, save for feedback.

A session's folder holds ``in.wav`` and ``out.wav`` (what was heard and what was said, end to end), the pictures, and
``events.jsonl``: every input and output in order, without its bytes.
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

_ROUND_S = 0.25
_MAX_PENDING = 16 << 20
_MAX_FEEDBACK = 64 << 10
_UNKNOWN_SIZE = 0xFFFFFFFF - 36
_WAV_HEADER = 44


class Recorder:
    """The recordings of one server, in `folder`; sessions are folders in it, feedback is one file.

    Whenever a recording begins or ends, the oldest are deleted until the rest is younger than `max_age_s` and takes
    no more than `max_bytes`; a recording under way stops at that size.
    """

    def __init__(self, folder: Path, *, record: bool = False, max_bytes: int = 1 << 30, max_age_s: float = 30 * 86_400):
        self.folder = folder
        self.record = record
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._open: set[SessionRecording] = set()
        self._feedback = asyncio.Lock()
        self._pruning = asyncio.Lock()

    def open(self, session_id: str) -> SessionRecording | None:
        """Begin to record a session; None where recording is off."""
        if not self.record:
            return None
        recording = SessionRecording(self, session_id)
        self._open.add(recording)
        return recording

    async def feedback(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line to ``feedback.jsonl``. Raises `InputError` for what is no JSON or longer than 64 KiB."""
        try:
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise InputError("Feedback must be plain JSON") from error
        if len(line) > _MAX_FEEDBACK:
            raise InputError("Feedback is too long", status=413)
        async with self._feedback:
            await wrap(self.folder.mkdir)(parents=True, exist_ok=True)
            async with aiofiles.open(self.folder / "feedback.jsonl", "ab") as file:
                await file.write(line)

    async def close(self) -> None:
        """End every recording; returns when they are on disk."""
        await asyncio.gather(*(recording.close() for recording in self._open))

    def closed(self, recording: SessionRecording) -> None:
        self._open.discard(recording)

    async def prune(self) -> None:
        """Delete the recordings that are too old or too many."""
        async with self._pruning:
            kept = {recording.folder for recording in self._open}
            try:
                await wrap(_prune)(self.folder, kept, self.max_bytes, time.time() - self.max_age_s)
            except OSError as error:
                log.warning("Old recordings could not be deleted: %s", error)


class SessionRecording:
    """One session's recording. `write` never waits: what the disk cannot take in time is left out, and counted."""

    def __init__(self, journal: Recorder, session_id: str) -> None:
        self.folder = journal.folder / folder_name(session_id)
        self.dropped = 0
        self._journal = journal
        self._pending: dict[str, list[bytes]] = {}
        self._pending_bytes = 0
        self._written = 0
        self._images = 0
        self._asides: set[str] = set()
        """Answers out of band that are being made: their speech would fall into the middle of the conversation's."""
        self._rates: dict[str, int] = {}
        self._resamplers: dict[tuple[str, int], Resampler] = {}
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"journal {self.folder.name}")

    def write(self, event: Input | Output) -> None:
        """Note an event, and the sound or picture that it carries."""
        files: dict[str, bytes] = {}
        pictures: dict[str, bytes] = {}
        match event:
            case Audio(chunk):
                files["in.wav"] = self._aligned("in.wav", chunk)
            case ResponseStarted(turn, conversation=False):
                self._asides.add(turn)
            case ResponseEnded(turn):
                self._asides.discard(turn)
            case SpeechDelta(turn, chunk=chunk) if turn not in self._asides:
                files["out.wav"] = self._aligned("out.wav", chunk)
            case Image(frame):
                pictures = self._named([frame])
            case AddItem(item):  # a whole turn in one piece
                if item.audio is not None:
                    files["in.wav"] = self._aligned("in.wav", to_chunk(item.audio))
                pictures = self._named(item.images)
        line = {"event": type(event).__name__, "time": round(time.time(), 3), **plain(event)}
        if pictures:
            line |= {"file": next(iter(pictures))} if len(pictures) == 1 else {"files": list(pictures)}
        files |= pictures
        files["events.jsonl"] = orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE)
        self._put(files)

    async def close(self) -> None:
        """Write what is pending and complete the files."""
        self._closing.set()
        self._some.set()
        await asyncio.shield(self._task)

    def _named(self, frames: Sequence[ImageFrame]) -> dict[str, bytes]:
        """Pictures under the names of their files."""
        first, self._images = self._images + 1, self._images + len(frames)
        return {f"image-{n:04}.{f.media_type.rpartition('/')[2]}": f.data for n, f in enumerate(frames, first)}

    def _aligned(self, name: str, chunk: AudioChunk) -> bytes:
        """A track has the rate of its first piece."""
        rate = self._rates.setdefault(name, chunk.rate)
        if chunk.rate == rate:
            return chunk.pcm
        return self._resamplers.setdefault((name, chunk.rate), Resampler(chunk.rate, rate)).push(chunk.pcm)

    def _put(self, files: Mapping[str, bytes]) -> None:
        size = sum(map(len, files.values()))
        full = self._written + size > self._journal.max_bytes
        if full or self._task.done() or (self._pending_bytes and self._pending_bytes + size > _MAX_PENDING):
            if not self.dropped:
                log.warning("Recording %s is incomplete: disk too slow, full or gone", self.folder.name)
            self.dropped += 1
            return
        for name, data in files.items():
            self._pending.setdefault(name, []).append(data)
        self._pending_bytes += size
        self._written += size
        self._some.set()

    async def _run(self) -> None:
        try:
            await self._journal.prune()
            await wrap(self.folder.mkdir)(mode=0o700, parents=True)
            async with AsyncExitStack() as files:
                await self._write_all(files)
        except OSError as error:
            log.warning("Recording %s stopped: %s", self.folder.name, error)
        finally:
            self._journal.closed(self)
        if self.dropped:
            log.warning("Recording %s lacks %d events", self.folder.name, self.dropped)
        await self._journal.prune()

    async def _write_all(self, files: AsyncExitStack) -> None:
        """Write in rounds: one hop to a thread for each file and round, not for each event."""
        opened: dict[str, AsyncBufferedIOBase] = {}
        while not self._closing.is_set() or self._pending:
            await self._some.wait()
            self._some.clear()
            await _set_or_elapsed(self._closing, _ROUND_S)
            batch, self._pending = self._pending, {}
            for name, pieces in batch.items():
                data = b"".join(pieces)
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
    """A file to append to; with a rate it is a WAV, whose header tells its length once it is closed."""
    async with aiofiles.open(path, "wb") as file:
        if rate is None:
            yield file
            return
        await file.write(wav_header(rate, _UNKNOWN_SIZE))
        try:
            yield file
        finally:
            size = await file.tell() - _WAV_HEADER
            await file.seek(0)
            await file.write(wav_header(rate, min(size, _UNKNOWN_SIZE)))


async def _set_or_elapsed(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def folder_name(session_id: str) -> str:
    """A folder's name for any session id: readable, harmless, unlike that of any other id or time."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", session_id)[:40]
    digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable}-{digest}-{time.time_ns():x}"


def plain(value: Any) -> Any:
    """An event as JSON values; of bytes only their number."""
    match value:
        case bytes() | bytearray():
            return {"bytes": len(value)}
        case tuple() | list():
            return [plain(v) for v in value]
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _prune(folder: Path, kept: set[Path], max_bytes: int, oldest: float) -> None:
    """Delete session folders that ended before `oldest` (Unix time), then the oldest beyond `max_bytes` in all."""
    if not folder.is_dir():
        return
    found = []
    for session in folder.iterdir():
        if session.is_dir() and not session.is_symlink():
            stats = [file.stat() for file in session.iterdir()]
            found.append((max((s.st_mtime for s in stats), default=0), sum(s.st_size for s in stats), session))
    total = sum(size for _, size, _ in found)
    for ended, size, session in sorted(found):
        if session not in kept and (ended < oldest or total > max_bytes):
            shutil.rmtree(session, ignore_errors=True)
            total -= size
