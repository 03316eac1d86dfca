"""How fast an answer falls silent: `uv run benchmarks/interrupt.py`.

While other users talk, callers are answered and stop the answer at a moment of chance: by POST /stop, by a message on
their socket, and by speaking into it. Printed are the distributions of the times until the last of the old answer has
arrived, and until the caller was told. A step of the stub's model takes 10 ms. With `--model echo` it is the built-in
engine that is busy; its talkers cost what its recogniser costs, so take few.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import uvloop

from benchmarks.host import cores, serving
from benchmarks.server import OURS, Row, Target, measure
from benchmarks.users import TEXT, Dialect, Socket, converse, framed
from benchmarks.workload import Clip, Script, clip, scripts

QUESTION = b'{"messages":[{"role":"user","content":[{"type":"text","text":"Tell me what the weather will be."}]}]}'

Stop = Callable[["Client"], Awaitable[None]]


class Client:
    """One who types a question and stops the answer."""

    def __init__(self, address: str, uid: str) -> None:
        self.address = address
        self.uid = uid
        self.socket: Socket | None = None
        self.last = 0.0
        self._dialect = Dialect()
        self._ended = asyncio.Event()
        self._stopped = False

    async def connect(self) -> None:
        self.socket = await Socket.connect(f"ws://{self.address}/ws/stream?uid={self.uid}", self._take)
        hello = self._dialect.hello()
        assert hello is not None
        self.socket.send(hello)

    def _take(self, opcode: int, message: bytes) -> None:
        if b'"choices":[' not in message:
            return
        if b"<end>" in message[-300:]:
            self._stopped = self._dialect.interrupted(opcode, message)
            self._ended.set()
        else:
            self.last = time.monotonic()

    async def ask_and_stop(self, delay_s: float, stop: Stop) -> tuple[float, float] | None:
        """ms until the last of the answer came, and until its end was told; None if it was over by itself."""
        assert self.socket is not None
        self._ended.clear()
        self.socket.send(framed(TEXT, QUESTION))
        await asyncio.sleep(delay_s)
        asked = time.monotonic()
        await stop(self)
        await asyncio.wait_for(self._ended.wait(), 20)
        told = time.monotonic()
        return (max(0.0, self.last - asked) * 1000, (told - asked) * 1000) if self._stopped else None


async def by_message(caller: Client) -> None:
    assert caller.socket is not None
    caller.socket.send(framed(TEXT, b'{"type":"stop"}'))


async def by_post(caller: Client) -> None:
    """Whole, with a connection of its own, as a stranger to the socket would."""
    host, port = caller.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /stop HTTP/1.1\r\nHost: {caller.address}\r\nuid: {caller.uid}\r\nContent-Length: 0\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    if b" 200 " not in status:
        raise ConnectionError(status.decode())


async def stops(address: str, said: Clip, plans: list[Script], count: int, longest_s: float) -> dict[str, list[float]]:
    """The times of `count` stops of either kind, while the plans are acted out."""
    talking = asyncio.create_task(converse(f"ws://{address}", Dialect(), said, plans, {})) if plans else None
    caller, chance = Client(address, "caller"), random.Random(0)
    await caller.connect()
    found: dict[str, list[float]] = {}
    ways: dict[str, Stop] = {"POST /stop": by_post, 'message "stop"': by_message}
    for _ in range(count):
        for name, way in ways.items():
            if (times := await caller.ask_and_stop(chance.uniform(0.02, longest_s), way)) is not None:
                found.setdefault(f"{name}: last of the answer", []).append(times[0])
                found.setdefault(f"{name}: told", []).append(times[1])
    if talking is not None:
        talking.cancel()
        await asyncio.wait([talking])
    return found


def show(name: str, values: list[float]) -> None:
    """One line of percentiles and a histogram."""
    if not values:
        print(f"{name:34} never in time")
        return
    marks = [f"{np.percentile(values, p):8.1f}" for p in (50, 90, 95, 99, 100)]
    edges = [0, 1, 2, 5, 10, 20, 30, 40, 50, 100, 1e9]
    counts, _ = np.histogram(values, edges)
    bars = "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(8 * count / len(values)))] for count in counts)
    print(f"{name:34}{len(values):6}{''.join(marks)}   |{bars}|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stub", help="engine (default stub)")
    parser.add_argument("--users", type=int, default=25, help="others who talk meanwhile (default 25)")
    parser.add_argument("--count", type=int, default=40, help="stops of each kind (default 40)")
    parser.add_argument("--speech", type=Path, help="WAV with one utterance (default: espeak-ng speaks)")
    chosen = parser.parse_args()
    said = clip(chosen.speech)
    command = tuple(chosen.model if part == "stub" else part for part in OURS)
    ours, theirs = cores()
    os.sched_setaffinity(0, theirs)
    longest_s = 1.1  # the stub is done after 1.2 s, a second ahead of playing
    loops = 2 + int(2 * chosen.count * longest_s / (len(said) / 50))
    with serving(command, ours) as (address, _):
        plans = scripts(said, chosen.users, loops, 0) if chosen.users else []
        found = uvloop.run(stops(address, said, plans, chosen.count, longest_s))
    if chosen.model == "stub" and chosen.users:
        row: Row = measure(Target("EchoSight", command, Dialect()), said, chosen.users, 1, 6)
        found["speech: last byte of speech"] = row.silenced_ms
        found["speech: told"] = row.told_ms
    print(f"ms, {chosen.users} others talking, engine {chosen.model}; bars at 0 1 2 5 10 20 30 40 50 100 and more\n")
    print(f"{'':34}{'n':>6}{'p50':>8}{'p90':>8}{'p95':>8}{'p99':>8}{'max':>8}")
    for name, values in found.items():
        show(name, values)


if __name__ == "__main__":
    main()
