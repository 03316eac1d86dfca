"""Measures how many live users one core can serve: `uv run benchmarks/server.py`.

Each user sends 20 ms frames in real time, three seconds of speech and then silence. A stub responds: it takes 200 ms to
its first speech and then speaks for two seconds. The server has one core and the users another; each row is measured
with a new server.

  cores/user   CPU cores of the server per user
  MB/user      additional resident memory per user, compared with the first row (which shows the whole server's)
  over         latency that the server adds, ms: from the end of the silence that ends the turn to the first byte of
               speech, minus the stub's 200 ms
  failed       turns without a complete response
  barge-in     ms from the user's first window of speech over a response to the response's last byte of speech, and to
               the message that it was stopped; 95th percentile
  late, other  delay of the users' own frames, p95 in ms, and cores used by other programs: both must be small

To measure the peers too: `uv run --group peers benchmarks/server.py --peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import uvloop

from benchmarks.host import Load, ResourceUsage, pick_cores, running_server
from benchmarks.peers import LiveKit, Pipecat
from benchmarks.realtime import Realtime
from benchmarks.users import Dialect, User, run_users
from benchmarks.workload import RESPONSE_BYTES, STUB_LATENCY_MS, Clip, clip, scripts


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure. `needs` is a package that it requires."""

    name: str
    command: tuple[str, ...]
    dialect: Dialect
    needs: str | None = None


OURS = ("model_server.py", "--model", "stub", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
TARGETS = (
    Target("EchoSight", OURS, Dialect()),
    Target("EchoSight, binary audio", OURS, Dialect(binary=True)),
    Target("EchoSight, /v1/realtime", OURS, Realtime()),
    Target("practical floor", ("benchmarks/floor.py", "{port}"), Dialect()),
)
PEERS = (
    Target("livekit-agents", ("benchmarks/peers.py", "livekit", "{port}"), LiveKit(), "livekit.agents"),
    Target("pipecat", ("benchmarks/peers.py", "pipecat", "{port}"), Pipecat(), "pipecat"),
)


@dataclass(slots=True)
class Row:
    """The result for one number of users. The lists have an entry for each turn."""

    target: str
    users: int
    load: Load
    memory_mb: float
    late_ms: float
    turns: int = 0
    failed: int = 0
    over_ms: list[float] = field(default_factory=list)
    silenced_ms: list[float] = field(default_factory=list)
    notified_ms: list[float] = field(default_factory=list)

    def add_user(self, user: User, steady: range) -> None:
        """Add the turns of a user: complete ones that end in the frames `steady`, interrupted ones after them."""
        script, sent = user.script, user.sent
        ends = script.ends
        for k, end in enumerate(ends):
            if end >= len(sent):
                if k < script.first_interruption - 1:
                    self.turns, self.failed = self.turns + 1, self.failed + 1
                continue
            next_end = sent[ends[k + 1]] if k + 1 < len(ends) and ends[k + 1] < len(sent) else np.inf
            response = [(received, size) for received, size in user.speech if sent[end] <= received < next_end]
            complete = sum(size for _, size in response) >= 0.95 * RESPONSE_BYTES
            if k < script.first_interruption - 1:
                if end in steady:
                    self.turns += 1
                    self.failed += not complete
                    self.over_ms += [(response[0][0] - sent[end]) * 1000 - STUB_LATENCY_MS] if response else []
            elif not complete and response and k + 1 < len(script.starts):
                onset = sent[script.starts[k + 1]]
                self.silenced_ms.append(max(0.0, (response[-1][0] - onset) * 1000))
                self.notified_ms += [(stop - onset) * 1000 for stop in user.stopped if onset <= stop < next_end][:1]


def measure(target: Target, clip: Clip, users: int, loops: int, interruptions: int) -> Row:
    """Measure one row: start the server, let the users talk, stop it."""
    plans = scripts(clip, users, loops + 1, interruptions)
    steady = range(len(clip), len(clip) * (loops + 1))
    usages: list[ResourceUsage] = []
    server_core, client_core = pick_cores()
    os.sched_setaffinity(0, client_core)
    with running_server(target.command, server_core) as (address, pid):
        record: Callable[[], None] = lambda: usages.append(ResourceUsage.of(pid))  # noqa: E731
        on_frame = {steady.start: record, steady.stop: record}
        talkers, delays = uvloop.run(run_users(f"ws://{address}", target.dialect, clip, plans, on_frame))
    load = Load.between(*usages)
    row = Row(target.name, users, load, usages[1].memory_mb, _percentile(delays.late_ms, 95))
    for user in talkers:
        row.add_user(user, steady)
    return row


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


COLUMNS = (
    "users",
    "cores/user",
    "cores",
    "MB/user",
    "over p50",
    "p95",
    "failed",
    "barge-in p95",
    "notified p95",
    "late",
    "other",
)


def format_row(row: Row, first: Row) -> str:
    added_users = row.users - first.users
    cells = (
        f"{row.users}",
        f"{row.load.server / row.users:.4f}",
        f"{row.load.server:.3f}",
        f"{(row.memory_mb - first.memory_mb) / added_users:.2f}" if added_users else f"({row.memory_mb:.0f})",
        f"{_percentile(row.over_ms, 50):.1f}",
        f"{_percentile(row.over_ms, 95):.1f}",
        f"{row.failed}/{row.turns}",
        f"{_percentile(row.silenced_ms, 95):.1f}",
        f"{_percentile(row.notified_ms, 95):.1f}",
        f"{row.late_ms:.1f}",
        f"{row.load.others:.2f}",
    )
    return "".join(f"{cell.replace('nan', '-'):>13}" for cell in cells)


def wait_for_quiet(timeout_s: float) -> None:
    """Wait until other programs use less than 0.3 cores, at most `timeout_s`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        before = ResourceUsage.of(os.getpid())
        time.sleep(1.5)
        if Load.between(before, ResourceUsage.of(os.getpid())).others < 0.3:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,5,10,25,50,100", help="numbers of users, separated by commas")
    parser.add_argument("--loops", type=int, default=2, help="complete responses of each user (default 2)")
    parser.add_argument("--interruptions", type=int, default=2, help="interrupted responses of each user (default 2)")
    parser.add_argument("--speech", type=Path, help="WAV file with one utterance (default: espeak-ng synthesizes one)")
    parser.add_argument("--only", help="measure only the servers whose name contains this text")
    parser.add_argument("--peers", action="store_true", help="measure pipecat and livekit-agents as well")
    parser.add_argument("--patience", type=float, default=5, help="seconds to wait for a quiet machine")
    parser.add_argument("--json", type=Path, help="append the rows to this file as JSON lines")
    args = parser.parse_args()
    speech = clip(args.speech)
    for target in (*TARGETS, *(PEERS if args.peers else ())):
        if args.only and args.only.lower() not in target.name.lower():
            continue
        print(f"\n{target.name}\n" + "".join(f"{name:>13}" for name in COLUMNS), flush=True)
        if target.needs and not find_spec(target.needs.partition(".")[0]):
            print("  not installed")
            continue
        first: Row | None = None
        for users in map(int, args.users.split(",")):
            wait_for_quiet(args.patience)
            row = measure(target, speech.at_rate(target.dialect.rate), users, args.loops, args.interruptions)
            first = first or row
            print(format_row(row, first), flush=True)
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
