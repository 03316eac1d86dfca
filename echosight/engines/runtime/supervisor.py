"""A model server of one's own: a process that is started, asked for its health, started again, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Callable, Sequence

import httpx

from echosight.engines.runtime.stderr import lines
from echosight.errors import SetupError

log = logging.getLogger(__name__)

RESTARTS = 5
"""In a row: a process that was well in between has them all again."""

CHECK_S = 30.0
ANSWER_S = 10.0
"""How long a process may take to say that it is well: it may be busy with a long prompt."""

MISSES = 2
"""Checks in a row that a process may miss."""

LOADING_S = 900.0
POLL_S = 0.1
PAUSE_S = 0.1
"""Before the first restart, about; it doubles with each."""

PATIENCE_S = 3.0
"""How long a process that is told to leave may take."""


class Supervisor:
    """`command(port)` is run until `close`; `up` is set while it is well, `down` once it is given up or closed."""

    def __init__(
        self, name: str, command: Callable[[int], Sequence[str]], *, check_s: float = CHECK_S, pause_s: float = PAUSE_S
    ) -> None:
        self.name = name
        self.port = _free_port()
        self.up = asyncio.Event()
        self.down = False
        self.restarts = 0
        self._command = command
        self._check_s = check_s
        self._pause_s = pause_s
        self._child: asyncio.subprocess.Process | None = None
        self._owner: asyncio.Task[None] | None = None
        self._last_words = ""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Returns when it is well. Raises `SetupError` where it never is."""
        self._owner = asyncio.create_task(self._supervise(), name=f"supervisor of {self.name}")
        up = asyncio.create_task(self.up.wait())
        try:
            await asyncio.wait({up, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._owner.done():
            self._owner.result()

    async def close(self) -> None:
        """Stop the process for good."""
        self.down = True
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.cancel()
            await asyncio.wait([owner])

    async def _supervise(self) -> None:
        started = False
        while True:
            well = await self._live()
            if not (started or well):
                raise SetupError(f"{self.name} does not start: {self._last_words or 'it said nothing'}")
            started = True
            if self.restarts == RESTARTS:
                break
            self.restarts += 1
            log.warning("%s died (%s); restart %d", self.name, self._last_words or "no last words", self.restarts)
            await asyncio.sleep(self._pause_s * 2**self.restarts)
        self.down = True
        log.error("%s died again after %d restarts and is left down", self.name, RESTARTS)

    async def _live(self) -> bool:
        """One life of the process; returns whether it was ever well."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        command = [*_leash(), *self._command(self.port)]
        try:
            child = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=pipe)
        except OSError as error:
            self._last_words = str(error)
            return False
        self._child = child
        assert child.stderr
        tasks = [asyncio.create_task(self._log(child.stderr)), asyncio.create_task(self._watch())]
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({ended, tasks[1]}, return_when=asyncio.FIRST_COMPLETED)
            return self.up.is_set()
        finally:
            self.up.clear()
            await _end(child)
            tasks[1].cancel()
            await asyncio.gather(ended, *tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Returns when the process is no longer well, or never becomes so."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            try:
                async with asyncio.timeout(LOADING_S):
                    while not await self._is_well(client):  # noqa: ASYNC110 - no event crosses processes
                        await asyncio.sleep(POLL_S)
            except TimeoutError:
                self._last_words = f"it was not ready within {LOADING_S:g} s"
                return
            self.up.set()
            missed = 0
            while missed < MISSES:
                await asyncio.sleep(self._check_s)
                if await self._is_well(client):
                    self.restarts = missed = 0
                else:
                    missed += 1
            self._last_words = "it does not answer"

    async def _is_well(self, client: httpx.AsyncClient) -> bool:
        """llama.cpp's own server has /health; llama-cpp-python's has not, and does not listen before it is ready."""
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get("/health", timeout=ANSWER_S)).status_code in (200, 404)
        return False

    async def _log(self, stderr: asyncio.StreamReader) -> None:
        async for words in lines(stderr):
            self._last_words = words[:300]
            log.debug("%s: %s", self.name, words)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Ask it to leave, and see that it does."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _leash() -> list[str]:
    """On Linux the process ends with this one, however this one ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
