"""Supervised worker processes, and channels to them: one per request, any number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from itertools import count
from pathlib import Path

import echosight
from echosight.engines.runtime.ipc import HEADER, FrameType, IpcFrame, log_lines, pack
from echosight.errors import EngineFailure, SetupError

log = logging.getLogger(__name__)

MAX_RESTART_PAUSE_S = 5.0
TERMINATE_GRACE_S = 1.0
"""How long a process may take to exit by itself before it is killed."""

RESTART_TIMEOUT_S = 10.0
"""How long a request waits for a process that is being restarted."""

PING_INTERVAL_S = 2.0
MAX_MISSED_PINGS = 5
"""Unanswered pings in a row after which a process counts as hung. A count and not a time: a machine that was
suspended, or is too busy to send pings, has missed none."""


class Channel:
    """One request to a process. AUDIO is only sent within the credit that the process gave."""

    def __init__(self, process: Process, number: int, window: int) -> None:
        self._process = process
        self._number = number
        self._frames: asyncio.Queue[IpcFrame | None] = asyncio.Queue()
        self._credit = window
        self._credit_changed = asyncio.Event()
        self._failure = ""

    @property
    def failed(self) -> bool:
        """Whether the process died or the channel was closed."""
        return bool(self._failure)

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Raises `EngineFailure` where the channel has failed."""
        if self._failure:
            raise EngineFailure(self._failure)
        self._process.write(pack(kind, self._number, payload))

    async def push(self, pcm: bytes) -> None:
        """Send AUDIO when the process has credit for it. Raises `EngineFailure` where the channel fails.

        The credit also bounds the pipe's buffer, so there is no need to wait for that.
        """
        while self._credit <= 0 and not self._failure:
            self._credit_changed.clear()
            await self._credit_changed.wait()
        self._credit -= len(pcm)
        self.send(FrameType.AUDIO, pcm)

    def poll(self) -> IpcFrame | None:
        """The next frame, None where none has arrived."""
        with contextlib.suppress(asyncio.QueueEmpty):
            return self._frames.get_nowait()
        return None

    async def receive(self) -> IpcFrame:
        """The next frame. Raises `EngineFailure` where the channel fails or the process could not do the request."""
        frame = None if self._failure and self._frames.empty() else await self._frames.get()
        if frame is None:
            raise EngineFailure(self._failure)
        if frame.kind is FrameType.FAIL:
            raise EngineFailure(frame.payload.decode(errors="replace"))
        return frame

    def deliver(self, frame: IpcFrame) -> None:
        """A frame came from the process."""
        if frame.kind is FrameType.CREDIT:
            self._credit += int.from_bytes(frame.payload, "little")
            self._credit_changed.set()
        else:
            self._frames.put_nowait(frame)

    def fail(self, reason: str) -> None:
        """Nothing more will come: `push`, `send` and `receive` raise `EngineFailure` from now on."""
        self._failure = self._failure or reason
        self._credit_changed.set()
        self._frames.put_nowait(None)

    def close(self) -> None:
        """End the request, complete or not. May be called twice."""
        if self._process.remove(self._number) and not self._failure:
            self.send(FrameType.END)
        self.fail(f"The request to the {self._process.name} process is closed")


class Process:
    """`python -m module arguments`, restarted whenever it dies. `ready_payload` is the payload of its READY frame.

    With `ping_s` it is pinged that often, and killed where it hangs; only for processes that read their pipe many times
    a second.
    """

    def __init__(self, module: str, name: str, arguments: tuple[str, ...] = (), *, ping_s: float | None = None) -> None:
        self.name = name
        self.ready_payload = b""
        self._ping_s = ping_s
        self._frames_received = 0
        self._command = (sys.executable, "-m", module, *arguments)
        self._ready = asyncio.Event()
        self._channels: dict[int, Channel] = {}
        self._numbers = count(1)
        self._child: asyncio.subprocess.Process | None = None
        self._owner: asyncio.Task[None] | None = None
        self._last_stderr = ""

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def in_flight(self) -> int:
        """Requests in progress."""
        return len(self._channels)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Returns when the process is ready. Raises `SetupError` where it exits before."""
        self._owner = asyncio.create_task(self._supervise())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._owner.done():
            self._owner.result()

    async def close(self) -> None:
        """Stop the process; requests in progress fail. Does nothing where it was not started."""
        if self._owner is None:
            return
        self._owner.cancel()
        await asyncio.wait({self._owner})
        self._owner = None

    async def open(self, window: int = 0) -> Channel:
        """A channel for a new request, once the process is ready. `window`: bytes of AUDIO that may be sent at first.

        Raises `EngineFailure` where the process does not become ready in time.
        """
        try:
            async with asyncio.timeout(RESTART_TIMEOUT_S if self._owner is not None else 0):
                await self._ready.wait()
        except TimeoutError:
            raise EngineFailure(f"The {self.name} process is not running") from None
        number = next(self._numbers)
        self._channels[number] = channel = Channel(self, number, window)
        return channel

    def remove(self, number: int) -> bool:
        """Drop a channel. Returns whether it was still in flight."""
        return self._channels.pop(number, None) is not None

    def write(self, data: bytes) -> None:
        """Where the process is dead, the data is dropped: its channels fail in a moment."""
        assert self._child and self._child.stdin
        if not self._child.stdin.is_closing():
            self._child.stdin.write(data)

    async def _supervise(self) -> None:
        pause = 0.0
        started = False
        while True:
            became_ready = await self._run_once()
            if not (started or became_ready):
                reason = self._last_stderr or "it printed no error"
                remedy = "; `uv sync` installs what is missing" if "ModuleNotFound" in reason else ""
                raise SetupError(f"The {self.name} process does not start: {reason}{remedy}")
            log.warning("The %s process died (%s); restarting it", self.name, self._last_stderr or "no error output")
            started = True
            pause = 0.0 if became_ready else min(2 * pause + 0.1, MAX_RESTART_PAUSE_S)
            await asyncio.sleep(pause)

    async def _run_once(self) -> bool:
        """Run the process until it exits; returns whether it became ready."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()
        )
        assert child.stdin and child.stdout and child.stderr
        self._child = child
        self._last_stderr = ""
        logging_task = asyncio.create_task(self._log(child.stderr))
        ping_task = asyncio.create_task(self._ping(child))
        try:
            await self._route(child.stdout)
            return self.ready
        finally:
            ping_task.cancel()
            self._ready.clear()
            for channel in self._channels.values():
                channel.fail(f"The {self.name} process died; it is being restarted")
            self._channels.clear()
            # The worker exits when its standard input ends.
            child.stdin.close()
            try:
                async with asyncio.timeout(TERMINATE_GRACE_S):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
            await asyncio.gather(logging_task, ping_task, return_exceptions=True)

    async def _ping(self, child: asyncio.subprocess.Process) -> None:
        """Kill a process that hangs. Any frame from it counts as an answer, so a busy one has time."""
        if self._ping_s is None:
            return
        await self._ready.wait()
        missed = 0
        while missed < MAX_MISSED_PINGS:
            received = self._frames_received
            self.write(pack(FrameType.ALIVE, 0))
            await asyncio.sleep(self._ping_s)
            missed = missed + 1 if self._frames_received == received else 0
        self._last_stderr = "it hung"
        child.kill()

    async def _route(self, stdout: asyncio.StreamReader) -> None:
        """Deliver each frame to its channel, until the process exits."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, number, length = HEADER.unpack(await stdout.readexactly(HEADER.size))
                frame = IpcFrame(FrameType(kind), number, await stdout.readexactly(length))
                self._frames_received += 1
                if frame.kind is FrameType.READY:
                    self.ready_payload = frame.payload
                    self._ready.set()
                elif channel := self._channels.get(number):
                    channel.deliver(frame)

    async def _log(self, stderr: asyncio.StreamReader) -> None:
        async for line in log_lines(stderr):
            self._last_stderr = line
            log.info("%s: %s", self.name, line)


class Pool:
    """Processes of one kind, pinged in case they hang. A request goes to the one with the fewest in flight."""

    def __init__(
        self, module: str, name: str, size: int = 1, arguments: tuple[str, ...] = (), *, ping_s: float = PING_INTERVAL_S
    ) -> None:
        self.processes = tuple(Process(module, name, arguments, ping_s=ping_s) for _ in range(size))

    @property
    def ready_payload(self) -> bytes:
        return self.processes[0].ready_payload

    async def start(self) -> None:
        """Start all. Raises `SetupError` where one does not start; none is left running then."""
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
        """See `Process.open`. Equal keys go to the same process where it is as free as the others."""
        preferred = self.processes[hash(key) % len(self.processes)]
        chosen = min(self.processes, key=lambda p: (not p.ready, p.in_flight, p is not preferred))
        return await chosen.open(window)


def _environment() -> dict[str, str]:
    """Ours, with this package on PYTHONPATH, so that the process finds it wherever the server was started."""
    root = str(Path(echosight.__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}
