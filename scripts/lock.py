"""Write `uv.lock` in the form that is committed: versions and dependencies, but no addresses.

Run it with any Python; it needs uv.

    python scripts/lock.py              # after a change of pyproject.toml: keep the versions there are
    python scripts/lock.py --upgrade    # the newest versions
    python scripts/lock.py --check      # is the committed lock free of addresses, and what pyproject.toml wants?
    python scripts/lock.py --strip      # a filter: the lock on stdin without its addresses

uv takes the versions from such a lock and fills in the addresses of the user's own registry, because the Python
range written in it is one step wider than the project's; so the first `uv run` leaves a changed `uv.lock` behind.
A commit never takes those addresses up where git is told, once for each clone:

    git config filter.lock.clean "python3 scripts/lock.py --strip"
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def strip(lock: str) -> str:
    """The lock without addresses and hashes. Stripping twice changes nothing."""
    lock = re.sub(r"^(?:sdist = \{.*\}|wheels = \[(?:\n .*)*\n\])\n", "", lock, flags=re.MULTILINE)
    lock = re.sub(r'registry = "[^"]*"', 'registry = "pypi"', lock)
    return re.sub(r'(?<=^requires-python = ").*(?="$)', _widened, lock, count=1, flags=re.MULTILINE)


def _widened(range_: re.Match[str]) -> str:
    """One minor version more than pyproject.toml allows, whatever this lock says."""
    wanted = re.search(
        r'^requires-python = ">=(3\.\d+),<3\.(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    if wanted is None:
        sys.exit("lock.py: requires-python in pyproject.toml is not of the form >=3.X,<3.Y")
    return f">={wanted[1]}, <3.{int(wanted[2]) + 1}"


def resolve(seed: str | None, *options: str) -> str:
    """What uv locks for pyproject.toml, away from the working tree, keeping the versions of `seed` where it may."""
    # A local index or wheel folder must not leak into everybody's lock.
    clean = {
        k: v for k, v in os.environ.items() if not re.match(r"UV_(FIND_LINKS|(DEFAULT_|EXTRA_)?INDEX|NO_INDEX)", k)
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "pyproject.toml", folder)
        lock = Path(folder, "uv.lock")
        if seed is not None:
            lock.write_text(seed)
        done = subprocess.run(
            ["uv", "lock", "--quiet", *options], cwd=folder, env=clean, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return strip(lock.read_text())


def committed() -> str | None:
    shown = subprocess.run(["git", "show", "HEAD:uv.lock"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else None


def check() -> str | None:
    """What is wrong with the committed lock, None if nothing is. Asks the network only for what uv has not cached."""
    lock = committed()
    if lock is None:
        return "uv.lock is not committed"
    if "://" in lock:
        return "the committed uv.lock holds addresses; run scripts/lock.py and commit what it writes"
    try:
        wanted = resolve(lock, "--offline")
    except RuntimeError:
        wanted = resolve(lock)
    return None if wanted == lock else "the committed uv.lock is not what pyproject.toml wants; run scripts/lock.py"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write uv.lock without addresses.")
    choice = parser.add_mutually_exclusive_group()
    for name in ("--check", "--strip", "--upgrade"):
        choice.add_argument(name, action="store_true")
    chosen = parser.parse_args()
    if chosen.strip:
        sys.stdout.write(strip(sys.stdin.read()))
        return
    try:
        if chosen.check:
            if problem := check():
                sys.exit(f"lock.py: {problem}")
        else:
            (ROOT / "uv.lock").write_text(resolve(committed(), *(["--upgrade"] if chosen.upgrade else [])))
    except RuntimeError as error:
        sys.exit(f"lock.py: {error}")


if __name__ == "__main__":
    main()
