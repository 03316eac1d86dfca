"""Measures how fast a response stops: `uv run benchmarks/interrupt.py`.

While other users talk, clients stop their response at a random time: by POST /stop, by a message on their socket, and
by speaking. The benchmark prints the distribution of the times until the last record of the response arrived, and until
the client was notified. A step of the stub's model takes 10 ms. With `--model echo` the built-in engine is measured;
its speech recognition needs much CPU, so use few `--users`.
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

from benchmarks.host import pick_cores, running_server
from benchmarks.server import OURS, Row, Target, measure
from benchmarks.users import TEXT, Dialect, Socket, encode_frame, run_users
from benchmarks.workload import Clip, Script, clip, scripts

QUESTION = b'{"messages":[{"role":"user","content":[{"type":"text","text":"Tell me what the weather will be."}]}]}'

Stop = Callable[["Client"], Awaitable[None]]


class Client:
    """A client that types a question and stops the response."""

    def __init__(self, address: str, uid: str) -> None:
        self.address = address
        self.uid = uid
        self.socket: Socket | None = None
        self.last_record = 0.0
        self._dialect = Dialect()
        self._ended = asyncio.Event()
        self._stopped = False

    async def connect(self) -> None:
        self.socket = await Socket.connect(f"ws://{self.address}/ws/stream?uid={self.uid}", self._on_message)
        subscribe = self._dialect.subscribe_message()
        assert subscribe is not None
        self.socket.send(subscribe)

    def _on_message(self, opcode: int, message: bytes) -> None:
        if b'"choices":[' not in message:
            return
        if b"<end>" in message[-300:]:
            self._stopped = self._dialect.is_interruption(opcode, message)
            self._ended.set()
        else:
            self.last_record = time.monotonic()

    async def ask_and_stop(self, delay_s: float, stop: Stop) -> tuple[float, float] | None:
        """ms from the stop to the last record, and to the notification. None if the response ended before the stop."""
        assert self.socket is not None
        self._ended.clear()
        self.socket.send(encode_frame(TEXT, QUESTION))
        await asyncio.sleep(delay_s)
        stopped = time.monotonic()
        await stop(self)
        await asyncio.wait_for(self._ended.wait(), 20)
        notified = time.monotonic()
        return (max(0.0, self.last_record - stopped) * 1000, (notified - stopped) * 1000) if self._stopped else None


async def stop_by_message(client: Client) -> None:
    assert client.socket is not None
    client.socket.send(encode_frame(TEXT, b'{"type":"stop"}'))


async def stop_by_post(client: Client) -> None:
    """On a new connection, as a client without the socket does."""
    host, port = client.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /stop HTTP/1.1\r\nHost: {client.address}\r\nuid: {client.uid}\r\nContent-Length: 0\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    if b" 200 " not in status:
        raise ConnectionError(status.decode())


async def measure_stops(
    address: str, speech: Clip, plans: list[Script], count: int, max_delay_s: float
) -> dict[str, list[float]]:
    """{name: ms} of `count` stops of each kind, while other users follow `plans`."""
    others = asyncio.create_task(run_users(f"ws://{address}", Dialect(), speech, plans, {})) if plans else None
    client, rng = Client(address, "client"), random.Random(0)
    await client.connect()
    results: dict[str, list[float]] = {}
    stops: dict[str, Stop] = {"POST /stop": stop_by_post, 'message "stop"': stop_by_message}
    for _ in range(count):
        for name, stop in stops.items():
            if (times := await client.ask_and_stop(rng.uniform(0.02, max_delay_s), stop)) is not None:
                results.setdefault(f"{name}: last record", []).append(times[0])
                results.setdefault(f"{name}: notified", []).append(times[1])
    if others is not None:
        others.cancel()
        await asyncio.wait([others])
    return results


def print_distribution(name: str, values: list[float]) -> None:
    """Print a line of percentiles and a histogram."""
    if not values:
        print(f"{name:34} no sample")
        return
    percentiles = [f"{np.percentile(values, p):8.1f}" for p in (50, 90, 95, 99, 100)]
    edges = [0, 1, 2, 5, 10, 20, 30, 40, 50, 100, 1e9]
    counts, _ = np.histogram(values, edges)
    bars = "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(8 * count / len(values)))] for count in counts)
    print(f"{name:34}{len(values):6}{''.join(percentiles)}   |{bars}|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stub", help="engine (default stub)")
    parser.add_argument("--users", type=int, default=25, help="other users who talk at the same time (default 25)")
    parser.add_argument("--count", type=int, default=40, help="stops of each kind (default 40)")
    parser.add_argument("--speech", type=Path, help="WAV file with one utterance (default: espeak-ng synthesizes one)")
    args = parser.parse_args()
    speech = clip(args.speech)
    command = tuple(args.model if part == "stub" else part for part in OURS)
    server_core, client_core = pick_cores()
    os.sched_setaffinity(0, client_core)
    max_delay_s = 1.1  # The stub has sent its response after 1.2 s, one second ahead of playback.
    loops = 2 + int(2 * args.count * max_delay_s / (len(speech) / 50))
    with running_server(command, server_core) as (address, _):
        plans = scripts(speech, args.users, loops, 0) if args.users else []
        results = uvloop.run(measure_stops(address, speech, plans, args.count, max_delay_s))
    if args.model == "stub" and args.users:
        row: Row = measure(Target("EchoSight", command, Dialect()), speech, args.users, 1, 6)
        results["speech: last byte of speech"] = row.silenced_ms
        results["speech: notified"] = row.notified_ms
    print(f"ms, {args.users} other users, engine {args.model}; histogram bins 0 1 2 5 10 20 30 40 50 100 and more\n")
    print(f"{'':34}{'n':>6}{'p50':>8}{'p90':>8}{'p95':>8}{'p99':>8}{'max':>8}")
    for name, values in results.items():
        print_distribution(name, values)


if __name__ == "__main__":
    main()
