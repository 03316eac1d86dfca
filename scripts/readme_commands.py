"""Run the commands of a README as they are written, in the README's folder.

    python scripts/readme_commands.py README.md

Blocks fenced as ``sh run`` are run one after another; each must succeed. A block fenced as ``sh run server`` starts in
the background; the next block waits until ``/health`` responds with 200. The next such block stops it, or the end.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    line: int
    server: bool
    commands: str


def blocks(markdown: str) -> list[Block]:
    """The blocks to run, in order. `line` is the line of the fence."""
    found = re.finditer(r"^(`{3,})[ ]*sh run( server)?[ ]*\n(.*?)^\1[ ]*$", markdown, re.MULTILINE | re.DOTALL)
    return [Block(markdown.count("\n", 0, m.start()) + 1, bool(m[2]), m[3]) for m in found]


def start(block: Block, folder: Path, output: int | None = None) -> subprocess.Popen[bytes]:
    """A shell for the block, with a new process group, so that `stop` reaches all that it starts."""
    print(f"\n-- line {block.line}\n{block.commands}", end="", flush=True)
    shell = ["bash", "-euo", "pipefail", "-c", block.commands]
    # Readers do not have the virtual environment that this script may run in.
    env = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.Popen(shell, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group; kill it where that takes longer than 15 s."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def server(block: Block, folder: Path, port: int, limit_s: float) -> Iterator[None]:
    """Run the block's server until the context ends. Raises RuntimeError with its output if it does not start."""
    if healthy(port):
        raise RuntimeError(f"another server is running on port {port} already")
    with tempfile.TemporaryFile() as output:
        process = start(block, folder, output.fileno())
        try:
            deadline = time.monotonic() + limit_s
            while not healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    text = output.read().decode(errors="replace")
                    raise RuntimeError(f"the server of line {block.line} did not start:\n{text}")
                time.sleep(0.2)
            yield
        finally:
            stop(process)


def run(block: Block, folder: Path, limit_s: float) -> None:
    process = start(block, folder)
    try:
        if status := process.wait(limit_s):
            raise RuntimeError(f"the commands of line {block.line} ended with status {status}")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the commands of line {block.line} took more than {limit_s:g} s") from None
    finally:
        stop(process)


def run_all(found: list[Block], folder: Path, port: int, limit_s: float) -> None:
    """A server runs for all blocks after it, up to the next server."""
    with ExitStack() as running:
        for block in found:
            if block.server:
                running.close()
                running.enter_context(server(block, folder, port, limit_s))
            else:
                run(block, folder, limit_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a README's commands as they are written.")
    parser.add_argument("readme", type=Path)
    parser.add_argument("--port", type=int, default=int(os.environ.get("SERVER_PORT", "32550")))
    parser.add_argument("--limit-s", type=float, default=600, help="longest time for one block")
    arguments = parser.parse_args()
    found = blocks(arguments.readme.read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{arguments.readme} has no block that is fenced as `sh run`")
    try:
        run_all(found, arguments.readme.resolve().parent, arguments.port, arguments.limit_s)
    except RuntimeError as error:
        sys.exit(f"README: {error}")
    print(f"\nREADME: {len(found)} blocks ran")


if __name__ == "__main__":
    main()
