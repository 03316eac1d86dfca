"""Measures how fast small devices are answered over Hotpin: `uv run benchmarks/devices.py`.

Each device sends three seconds of speech in 20 ms packets in real time, then EOS, and takes in the whole response. The
server has one core and the devices another. Times are p50/p95 in ms after EOS: the turn is taken in (transcription),
the transcript is there (llm), the speech begins (tts), and the first message of the WAV arrives (audio); in brackets
the median share of the stage. The stub answers after 200 ms; the built-in engine transcribes, answers and speaks. The
target is 500 ms at the 95th percentile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import httpx
import numpy as np
import uvloop

from benchmarks.host import Load, ResourceUsage, pick_cores, running_server
from benchmarks.users import BINARY, TEXT, Socket, encode_frame
from benchmarks.workload import Clip, clip

STAGES = ("transcription", "llm", "tts", "audio")
EOS = encode_frame(TEXT, b'{"signal":"EOS"}')


@dataclass
class Device:
    """One device. `stages` has the times of the turn in progress, `turns` those of all complete ones, in ms."""

    stages: dict[str, float] = field(default_factory=dict)
    turns: list[dict[str, float]] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    socket: Socket | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    eos: float = 0.0

    def on_message(self, opcode: int, message: bytes) -> None:
        if opcode == BINARY:
            self._mark("audio")
            return
        record = json.loads(message)
        if record["status"] == "processing":
            self._mark(record["stage"])
        elif record["status"] == "error":
            self.errors.append(message)
        elif record["status"] == "complete":
            self.turns.append(self.stages)
            self.ended.set()

    def _mark(self, stage: str) -> None:
        self.stages.setdefault(stage, (time.monotonic() - self.eos) * 1000)

    async def talk(self, url: str, number: int, frames: list[bytes], turns: int, delay_s: float) -> None:
        """Connect, wait, and take `turns` turns."""
        self.socket = await Socket.connect(f"{url}/ws", self.on_message)
        self.socket.send(encode_frame(TEXT, b'{"session_id":"device %d"}' % number))
        await asyncio.sleep(delay_s)
        for _ in range(turns):
            started = time.monotonic()
            for k, frame in enumerate(frames):
                await asyncio.sleep(max(0.0, started + k * 0.02 - time.monotonic()))
                self.socket.send(frame)
            self.stages, self.eos = {}, time.monotonic()
            self.ended.clear()
            self.socket.send(EOS)
            async with asyncio.timeout(60):
                await self.ended.wait()


async def measure(address: str, devices: int, turns: int, frames: list[bytes]) -> list[Device]:
    """All devices, spread evenly over one turn."""
    group = [Device() for _ in range(devices)]
    spread_s = len(frames) * 0.02 + 3
    work = [device.talk(f"ws://{address}", n, frames, turns, n / devices * spread_s) for n, device in enumerate(group)]
    await asyncio.gather(*work)
    for device in group:
        assert device.socket is not None
        device.socket.close()
    return group


def report(model: str, group: list[Device], load: Load) -> None:
    """One line: p50 and p95 of each stage, and the share of each in the median."""
    turns = [turn for device in group for turn in device.turns if set(STAGES) <= set(turn)]
    incomplete = sum(len(device.turns) for device in group) - len(turns)
    errors = sum(len(device.errors) for device in group)
    cells, before = [], 0.0
    for stage in STAGES:
        p50, p95 = np.percentile([turn[stage] for turn in turns], (50, 95))
        cells.append(f"{stage} {p50:.0f}/{p95:.0f} (+{p50 - before:.0f})")
        before = p50
    print(
        f"{model:8} {len(group):4} devices, {len(turns)} turns: {', '.join(cells)}; "
        f"without speech {incomplete}, errors {errors}, server {load.server:.2f} cores, others {load.others:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, help="a WAV without pauses, instead of synthetic speech")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=["echo:1", "echo:8", "stub:100"], help="model:devices")
    arguments = parser.parse_args()
    spoken: Clip = clip(arguments.recording)
    frames = [encode_frame(BINARY, pcm.tobytes()) for pcm in spoken.samples[: spoken.speech]]
    ours, clients = pick_cores()
    for row in arguments.rows:
        model, _, count = row.partition(":")
        flags = ("--model", model, "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
        short = ("--device-max-tokens", "8")  # the whole response is paced, and only its beginning is measured
        with running_server(("model_server.py", *flags, *short), ours) as (address, pid):
            os.sched_setaffinity(0, clients)
            while httpx.get(f"http://{address}/health").status_code != 200:
                time.sleep(0.2)
            before = ResourceUsage.of(pid)
            group = uvloop.run(measure(address, int(count), arguments.turns, frames))
            report(model, group, Load.between(before, ResourceUsage.of(pid)))


if __name__ == "__main__":
    main()
