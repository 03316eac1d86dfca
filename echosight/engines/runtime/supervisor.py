"""A model server that we run ourselves: started, checked by HTTP, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Callable, Sequence

import httpx

from echosight.engines.runtime.ipc import log_lines
from echosight.errors import SetupError

log = logging.getLogger(__name__)

RESTARTS = 5
"""In a row: a process that passes a health check in between has them all again."""

CHECK_INTERVAL_S = 30.0
CHECK_TIMEOUT_S = 10.0
"""How long the answer to a health check may take: the process may be busy with a long prompt."""

MAX_MISSED_CHECKS = 2
"""Failed health checks in a row after which the process is restarted."""

LOAD_TIMEOUT_S = 900.0
POLL_INTERVAL_S = 0.1
RESTART_PAUSE_S = 0.1
"""It doubles with each restart."""

TERMINATE_GRACE_S = 3.0
"""How long the process may take to exit after SIGTERM before it is killed."""


class Supervisor:
    """Runs `command(port)` until `close`.

    `healthy` is set while the process passes its health checks; `given_up` is True before `start`, after `close`, and
    once the process has died too often.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        check_s: float = CHECK_INTERVAL_S,
        pause_s: float = RESTART_PAUSE_S,
    ) -> None:
        self.name = name
        self.port = _free_port()
        self.healthy = asyncio.Event()
        self.given_up = True
        self.restarts = 0
        self._command = command
        self._check_s = check_s
        self._pause_s = pause_s
        self._child: asyncio.subprocess.Process | None = None
        self._owner: asyncio.Task[None] | None = None
        self._last_stderr = ""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Returns when the process is healthy. Raises `SetupError` where it exits or hangs before."""
        self.given_up, self.restarts = False, 0
        self._owner = asyncio.create_task(self._supervise(), name=f"supervisor of {self.name}")
        healthy = asyncio.create_task(self.healthy.wait())
        try:
            await asyncio.wait({healthy, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            healthy.cancel()
        if self._owner.done():
            self._owner.result()

    async def close(self) -> None:
        """Stop the process."""
        self.given_up = True
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.cancel()
            await asyncio.wait([owner])

    async def _supervise(self) -> None:
        started = False
        while True:
            was_healthy = await self._run_once()
            if not (started or was_healthy):
                raise SetupError(f"{self.name} does not start: {self._last_stderr or 'it printed no error'}")
            started = True
            if self.restarts == RESTARTS:
                break
            self.restarts += 1
            log.warning("%s died (%s); restart %d", self.name, self._last_stderr or "no error output", self.restarts)
            await asyncio.sleep(self._pause_s * 2**self.restarts)
        self.given_up = True
        log.error("%s died again after %d restarts and is not restarted any more", self.name, RESTARTS)

    async def _run_once(self) -> bool:
        """Run the process until it exits or hangs; returns whether it was ever healthy."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        command = [*_die_with_parent(), *self._command(self.port)]
        try:
            child = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=pipe)
        except OSError as error:
            self._last_stderr = str(error)
            return False
        self._child = child
        assert child.stderr
        tasks = [asyncio.create_task(self._log(child.stderr)), asyncio.create_task(self._watch())]
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({ended, tasks[1]}, return_when=asyncio.FIRST_COMPLETED)
            return self.healthy.is_set()
        finally:
            self.healthy.clear()
            await _terminate(child)
            tasks[1].cancel()
            await asyncio.gather(ended, *tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Returns when the process is no longer healthy, or does not become so in time."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            try:
                async with asyncio.timeout(LOAD_TIMEOUT_S):
                    while not await self._is_healthy(client):  # noqa: ASYNC110 - no event crosses processes
                        await asyncio.sleep(POLL_INTERVAL_S)
            except TimeoutError:
                self._last_stderr = f"it was not ready within {LOAD_TIMEOUT_S:g} s"
                return
            self.healthy.set()
            missed = 0
            while missed < MAX_MISSED_CHECKS:
                await asyncio.sleep(self._check_s)
                if await self._is_healthy(client):
                    self.restarts = missed = 0
                else:
                    missed += 1
            self._last_stderr = "it does not answer health checks"

    async def _is_healthy(self, client: httpx.AsyncClient) -> bool:
        """llama.cpp's server has /health; llama-cpp-python's has not, and listens only when it is ready."""
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get("/health", timeout=CHECK_TIMEOUT_S)).status_code in (200, 404)
        return False

    async def _log(self, stderr: asyncio.StreamReader) -> None:
        async for line in log_lines(stderr):
            self._last_stderr = line[:300]
            log.debug("%s: %s", self.name, line)


async def _terminate(child: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL where the process does not exit in time."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(TERMINATE_GRACE_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _die_with_parent() -> list[str]:
    """A command prefix: on Linux the kernel kills the process when ours ends, for whatever reason."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
