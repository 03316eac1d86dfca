"""A real server process on a free port, started as a user would start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
START_S = 100


class Addresses:
    """Where clients reach a server that listens on `port`."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


class Server(Addresses):
    """A running server. `log` is its output so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> list[int]:
        """The process ids of the server's child processes."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


Watch = Callable[[dict[str, Any]], None]
Serve = Callable[..., Server]
"""`serve("--flag", "value", VARIABLE="x")` starts a server for one test."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    folder: Path, *flags: str, program: Path = ROOT / "model_server.py", watch: Watch = lambda state: None, **env: str
) -> Iterator[Server]:
    """Start `model_server.py` with these flags and wait until it is healthy; stop it at the end.

    Until then, `watch` is called with each response of /health.
    """
    port = free_port()
    command = [sys.executable, str(program), "--port", str(port), *flags]
    log = folder / f"server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env={**os.environ, "LOG_DIR": str(folder / "log_data"), **env}
        )
    server = Server(process, port, log)
    try:
        _wait_for(server, watch)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in server.log, server.log


def _wait_for(server: Server, watch: Watch) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            health = httpx.get(f"{server.url}/health")
            if health.status_code == 200:
                return
            watch(health.json())
        except httpx.TransportError:
            pass
        time.sleep(0.05)  # a server that does not listen yet sends no event
    raise AssertionError(f"the server did not start:\n{server.log}")
