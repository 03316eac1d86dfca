"""Runs a server process on a core of its own, and measures its CPU time and memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
_TICK = os.sysconf("SC_CLK_TCK")


def pick_cores() -> tuple[set[int], set[int]]:
    """(core of the server, core of the clients): the same one only if the machine has one."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[1] if len(usable) > 1 else usable[0]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(command: Sequence[str], core: set[int], timeout_s: float = 90) -> Iterator[tuple[str, int]]:
    """Start a server, yield (address, process id), and stop it. ``{port}`` in `command` is replaced.

    Raises RuntimeError, with the server's stderr, if it does not start within `timeout_s`.
    """
    port = free_port()
    argv = [sys.executable, *(part.format(port=port) for part in command)]
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )
    try:
        _wait_for(port, process, timeout_s)
        time.sleep(1)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(process.communicate()[1].decode(errors="replace")[-2000:])


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """CPU seconds and MB so far: of a process with its children, of this process, and of the whole machine."""

    time: float
    server_s: float
    client_s: float
    machine_s: float
    memory_mb: float

    @classmethod
    def of(cls, pid: int) -> Self:
        processes = _process_tree(pid)
        machine = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        busy = sum(machine) - machine[3] - machine[4]
        return cls(
            time.monotonic(),
            sum(map(_cpu_s, processes)),
            time.process_time(),
            busy / _TICK,
            sum(map(_memory_mb, processes)),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """The mean number of busy cores between two measurements."""

    server: float
    client: float
    others: float

    @classmethod
    def between(cls, before: ResourceUsage, after: ResourceUsage) -> Self:
        seconds = after.time - before.time
        server = (after.server_s - before.server_s) / seconds
        client = (after.client_s - before.client_s) / seconds
        return cls(server, client, (after.machine_s - before.machine_s) / seconds - server - client)


def _process_tree(pid: int) -> list[int]:
    processes = [pid]
    for member in processes:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            processes += map(int, children.read_text().split())
    return processes


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
