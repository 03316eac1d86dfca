"""A helper process under supervision, and channels to it: one request each, any number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from itertools import count
from pathlib import Path

import echosight
from echosight.engines.runtime.ipc import HEADER, FrameType, IpcFrame, pack
from echosight.engines.runtime.stderr import lines
from echosight.errors import EngineFailure, SetupError

log = logging.getLogger(__name__)

SLOWEST_RETRY_S = 5.0
PATIENCE_S = 1.0
"""How long a process that is told to leave may take, before it is killed."""

LONGEST_RESTART_S = 10.0
"""How long a request waits for a process that is being restarted."""

CHECK_S = 2.0
"""How often a process that is watched is asked whether it is alive."""

MISSES = 5
"""Times in a row that it may say nothing before it is taken for hung. Times and not seconds: a machine that was
suspended, or is too busy to ask, has missed nothing."""


class Channel:
    """One request to a process. What is sent as AUDIO is limited to the credit that the process gave."""

    def __init__(self, process: Process, number: int, window: int) -> None:
        self._process = process
        self._number = number
        self._frames: asyncio.Queue[IpcFrame | None] = asyncio.Queue()
        self._credit = window
        self._room = asyncio.Event()
        self._room.set()
        self.failed = False

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Raises EngineFailure where the process is gone."""
        if self.failed:
            raise self._gone()
        self._process.write(pack(kind, self._number, payload))

    async def push(self, pcm: bytes) -> None:
        """Send audio, as soon as there is room for it at the other end."""
        while self._credit <= 0 and not self.failed:
            self._room.clear()
            await self._room.wait()
        self._credit -= len(pcm)
        self.send(FrameType.AUDIO, pcm)
        await self._process.drain()

    def news(self) -> IpcFrame | None:
        """The next frame, if there is one already."""
        with contextlib.suppress(asyncio.QueueEmpty):
            return self._frames.get_nowait()
        return None

    async def receive(self) -> IpcFrame:
        """The next frame. Raises EngineFailure where the process died or could not do what was asked."""
        frame = await self._frames.get()
        if frame is None:
            raise self._gone()
        if frame.kind is FrameType.FAIL:
            raise EngineFailure(frame.payload.decode(errors="replace"))
        return frame

    def deliver(self, frame: IpcFrame) -> None:
        if frame.kind is FrameType.CREDIT:
            self._credit += int.from_bytes(frame.payload, "little")
            self._room.set()
        else:
            self._frames.put_nowait(frame)

    def fail(self) -> None:
        self.failed = True
        self._room.set()
        self._frames.put_nowait(None)

    def close(self) -> None:
        """The request is over, done or not."""
        if self._process.drop(self._number) and not self.failed:
            self.send(FrameType.END)

    def _gone(self) -> EngineFailure:
        return EngineFailure(f"The {self._process.name} process died; it is being restarted")


class Process:
    """`python -m module`, started again whenever it dies. `hello` is what it said when it was ready.

    With `check_s` it is asked so often whether it is alive, and ended where it hangs; only for processes that look at
    their pipe many times a second.
    """

    def __init__(
        self, module: str, name: str, arguments: tuple[str, ...] = (), *, check_s: float | None = None
    ) -> None:
        self.name = name
        self.hello = b""
        self._check_s = check_s
        self._frames_heard = 0
        self._command = (sys.executable, "-m", module, *arguments)
        self._ready = asyncio.Event()
        self._channels: dict[int, Channel] = {}
        self._numbers = count(1)
        self._child: asyncio.subprocess.Process | None = None
        self._owner: asyncio.Task[None] | None = None
        self._last_words = ""

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def load(self) -> int:
        """Requests in flight."""
        return len(self._channels)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Returns when it is ready. Raises SetupError where it cannot even start."""
        self._owner = asyncio.create_task(self._supervise())
        up = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({up, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._owner.done():
            self._owner.result()

    async def close(self) -> None:
        """End it; whatever was in flight fails."""
        if self._owner is None:
            return
        self._owner.cancel()
        await asyncio.wait({self._owner})
        self._owner = None

    async def open(self, window: int = 0) -> Channel:
        """A channel for a new request, once the process is up. `window`: bytes of AUDIO that may be sent ahead.

        Raises EngineFailure where it does not come up.
        """
        try:
            async with asyncio.timeout(LONGEST_RESTART_S):
                await self._ready.wait()
        except TimeoutError:
            raise EngineFailure(f"The {self.name} process does not come up again") from None
        number = next(self._numbers)
        self._channels[number] = channel = Channel(self, number, window)
        return channel

    def drop(self, number: int) -> bool:
        return self._channels.pop(number, None) is not None

    def write(self, data: bytes) -> None:
        """What a dead process will not read is dropped: the channels that wrote it fail in a moment."""
        assert self._child and self._child.stdin
        if not self._child.stdin.is_closing():
            self._child.stdin.write(data)

    async def drain(self) -> None:
        assert self._child and self._child.stdin
        with contextlib.suppress(ConnectionError):
            await self._child.stdin.drain()

    async def _supervise(self) -> None:
        pause = 0.0
        started = False
        while True:
            came_up = await self._live()
            if not (started or came_up):
                reason = self._last_words or "it said nothing"
                remedy = "; `uv sync` installs what is missing" if "ModuleNotFound" in reason else ""
                raise SetupError(f"The {self.name} process does not start: {reason}{remedy}")
            log.warning("The %s process died (%s); starting it again", self.name, self._last_words or "no last words")
            started = True
            pause = 0.0 if came_up else min(2 * pause + 0.1, SLOWEST_RETRY_S)
            await asyncio.sleep(pause)

    async def _live(self) -> bool:
        """One life of the process; returns whether it was ever ready."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()
        )
        assert child.stdin and child.stdout and child.stderr
        self._child = child
        self._last_words = ""
        listening = asyncio.create_task(self._log(child.stderr))
        watching = asyncio.create_task(self._watch(child))
        try:
            await self._route(child.stdout)
            return self.ready
        finally:
            watching.cancel()
            self._ready.clear()
            for channel in self._channels.values():
                channel.fail()
            self._channels.clear()
            # The end of its input is its order to leave.
            child.stdin.close()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
            await asyncio.gather(listening, watching, return_exceptions=True)

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        """End a process that hangs. Whatever it says is a sign of life, so a busy one has time."""
        if self._check_s is None:
            return
        await self._ready.wait()
        missed = 0
        while missed < MISSES:
            heard = self._frames_heard
            self.write(pack(FrameType.ALIVE, 0))
            await asyncio.sleep(self._check_s)
            missed = missed + 1 if self._frames_heard == heard else 0
        self._last_words = "it hung"
        child.kill()

    async def _route(self, stdout: asyncio.StreamReader) -> None:
        """Hand every frame to its channel, until the process ends."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, number, length = HEADER.unpack(await stdout.readexactly(HEADER.size))
                frame = IpcFrame(FrameType(kind), number, await stdout.readexactly(length))
                self._frames_heard += 1
                if frame.kind is FrameType.READY:
                    self.hello = frame.payload
                    self._ready.set()
                elif channel := self._channels.get(number):
                    channel.deliver(frame)

    async def _log(self, stderr: asyncio.StreamReader) -> None:
        async for words in lines(stderr):
            self._last_words = words
            log.info("%s: %s", self.name, self._last_words)


class Pool:
    """Some processes of one kind, watched for hanging; a request goes to the one with the least to do."""

    def __init__(
        self, module: str, name: str, size: int = 1, arguments: tuple[str, ...] = (), *, check_s: float = CHECK_S
    ) -> None:
        self.processes = tuple(Process(module, name, arguments, check_s=check_s) for _ in range(size))

    @property
    def hello(self) -> bytes:
        return self.processes[0].hello

    async def start(self) -> None:
        """Raises SetupError, and leaves nothing running then."""
        try:
            starts = (process.start() for process in self.processes)
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if outcome is not None:
                    raise outcome
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await asyncio.gather(*(process.close() for process in self.processes))

    async def open(self, window: int = 0, *, key: str = "") -> Channel:
        """A channel to one of them; equal keys meet the same process when it is as free as the others."""
        favourite = self.processes[hash(key) % len(self.processes)]
        chosen = min(self.processes, key=lambda p: (not p.ready, p.load, p is not favourite))
        return await chosen.open(window)


def _environment() -> dict[str, str]:
    """The server's own, so that the process finds this package wherever the server was started."""
    root = str(Path(echosight.__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}
