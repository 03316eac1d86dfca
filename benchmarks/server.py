"""How many live users a core carries: `uv run benchmarks/server.py`.

Every user sends 20 ms frames at real time, three seconds of speech and then silence, and is answered by a stub that
takes 200 ms and speaks for two seconds. The server has one core and the users another; each row is a fresh server.

  cores/user   of the server
  MB/user      resident memory that a user adds, over the row with fewest users (there: that of the whole server)
  over         what the server adds, ms: its first byte of speech, less the moment the silence that ends the turn was
               complete, less the 200 ms
  failed       turns that were not answered in full
  barge-in     ms from the first window of speech, in users who speak into an answer, to its last byte of speech, and
               to the message that says it was stopped; 95 in 100 were faster
  late, other  how late the users were, p95 ms, and cores that other programs took: trust only quiet rows

Peers run where installed: `uv run --group peers benchmarks/server.py --peers`.
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

from benchmarks.host import Load, Reading, cores, serving
from benchmarks.peers import LiveKit, Pipecat
from benchmarks.realtime import Realtime
from benchmarks.users import Dialect, User, converse
from benchmarks.workload import ANSWER_BYTES, THINK_MS, Clip, clip, scripts


@dataclass(frozen=True, slots=True)
class Target:
    """A server to be measured. `needs`: the package without which it cannot run."""

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
    """What was measured with one number of users. `over_ms` and the barge-ins have an entry for each turn."""

    target: str
    users: int
    load: Load
    memory_mb: float
    late_ms: float
    turns: int = 0
    failed: int = 0
    over_ms: list[float] = field(default_factory=list)
    silenced_ms: list[float] = field(default_factory=list)
    told_ms: list[float] = field(default_factory=list)

    def judge(self, user: User, calm: range) -> None:
        """Add a user's turns: whole ones among the frames `calm`, interrupted ones after them."""
        script, sent = user.script, user.sent
        for k, over in enumerate(script.over):
            if over >= len(sent):
                if k < script.hasty - 1:
                    self.turns, self.failed = self.turns + 1, self.failed + 1
                continue
            until = sent[script.over[k + 1]] if k + 1 < len(script.over) and script.over[k + 1] < len(sent) else np.inf
            answer = [(at, size) for at, size in user.speech if sent[over] <= at < until]
            complete = sum(size for _, size in answer) >= 0.95 * ANSWER_BYTES
            if k < script.hasty - 1:
                if over in calm:
                    self.turns += 1
                    self.failed += not complete
                    self.over_ms += [(answer[0][0] - sent[over]) * 1000 - THINK_MS] if answer else []
            elif not complete and answer and k + 1 < len(script.began):
                noticed = sent[script.began[k + 1]]
                self.silenced_ms.append(max(0.0, (answer[-1][0] - noticed) * 1000))
                self.told_ms += [(at - noticed) * 1000 for at in user.stopped if noticed <= at < until][:1]


def measure(target: Target, clip: Clip, users: int, loops: int, interruptions: int) -> Row:
    """One row: start the server, let the users talk, end it."""
    plans = scripts(clip, users, loops + 1, interruptions)
    calm = range(len(clip), len(clip) * (loops + 1))
    readings: list[Reading] = []
    ours, theirs = cores()
    os.sched_setaffinity(0, theirs)
    with serving(target.command, ours) as (address, pid):
        read: Callable[[], None] = lambda: readings.append(Reading.of(pid))  # noqa: E731
        at_frame = {calm.start: read, calm.stop: read}
        people, pace = uvloop.run(converse(f"ws://{address}", target.dialect, clip, plans, at_frame))
    load = Load.between(*readings)
    row = Row(target.name, users, load, readings[1].memory_mb, _percentile(pace.late_ms, 95))
    for user in people:
        row.judge(user, calm)
    return row


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


HEAD = (
    "users",
    "cores/user",
    "cores",
    "MB/user",
    "over p50",
    "p95",
    "failed",
    "barge-in p95",
    "told p95",
    "late",
    "other",
)


def line(row: Row, fewest: Row) -> str:
    more = row.users - fewest.users
    cells = (
        f"{row.users}",
        f"{row.load.server / row.users:.4f}",
        f"{row.load.server:.3f}",
        f"{(row.memory_mb - fewest.memory_mb) / more:.2f}" if more else f"({row.memory_mb:.0f})",
        f"{_percentile(row.over_ms, 50):.1f}",
        f"{_percentile(row.over_ms, 95):.1f}",
        f"{row.failed}/{row.turns}",
        f"{_percentile(row.silenced_ms, 95):.1f}",
        f"{_percentile(row.told_ms, 95):.1f}",
        f"{row.late_ms:.1f}",
        f"{row.load.others:.2f}",
    )
    return "".join(f"{cell.replace('nan', '-'):>13}" for cell in cells)


def wait_for_quiet(patience_s: float) -> None:
    """Until other programs take less than 0.3 cores, but no longer than `patience_s`."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        before = Reading.of(os.getpid())
        time.sleep(1.5)
        if Load.between(before, Reading.of(os.getpid())).others < 0.3:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,5,10,25,50,100", help="numbers of users, separated by commas")
    parser.add_argument("--loops", type=int, default=2, help="answers of each user that are judged (default 2)")
    parser.add_argument("--interruptions", type=int, default=2, help="answers of each that are interrupted (default 2)")
    parser.add_argument("--speech", type=Path, help="WAV with one utterance (default: espeak-ng speaks)")
    parser.add_argument("--only", help="measure only targets whose name contains this")
    parser.add_argument("--peers", action="store_true", help="measure pipecat and livekit-agents as well")
    parser.add_argument("--patience", type=float, default=5, help="seconds to wait for a quiet machine")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    chosen = parser.parse_args()
    said = clip(chosen.speech)
    for target in (*TARGETS, *(PEERS if chosen.peers else ())):
        if chosen.only and chosen.only.lower() not in target.name.lower():
            continue
        print(f"\n{target.name}\n" + "".join(f"{name:>13}" for name in HEAD), flush=True)
        if target.needs and not find_spec(target.needs.partition(".")[0]):
            print("  not installed")
            continue
        fewest: Row | None = None
        for users in map(int, chosen.users.split(",")):
            wait_for_quiet(chosen.patience)
            row = measure(target, said.at(target.dialect.rate), users, chosen.loops, chosen.interruptions)
            fewest = fewest or row
            print(line(row, fewest), flush=True)
            if chosen.json:
                with chosen.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
