"""Write `uv.lock` and `requirements.txt` in the form that is committed: without addresses.

Run it with any Python; it needs uv.

    python scripts/lock.py              # after a change of pyproject.toml: keep the versions that still fit
    python scripts/lock.py --upgrade    # the newest versions
    python scripts/lock.py --check      # are the committed files free of addresses, and in step with pyproject.toml?
    python scripts/lock.py --strip      # a filter: the lock on stdin without its addresses

`uv.lock` holds versions and dependencies. uv takes the versions from it and fills in the addresses of the user's own
registry, because the Python range in it is one step wider than the project's; so the first `uv run` leaves a changed
`uv.lock` behind. This filter, set once in each clone, keeps those addresses out of commits:

    git config filter.lock.clean "python3 scripts/lock.py --strip"

`requirements.txt` is the base install for pip and Docker: the same versions, with the hashes of their files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# The base install, for pip: pip install --require-hashes -r requirements.txt. Written by scripts/lock.py.\n"


@dataclass(frozen=True)
class Locked:
    """The two files. `requirements` has hashes where uv could ask a registry for them."""

    lock: str
    requirements: str


def strip(lock: str) -> str:
    """The lock without addresses and hashes. Stripping twice changes nothing."""
    lock = re.sub(r"^(?:sdist = \{.*\}|wheels = \[(?:\n .*)*\n\])\n", "", lock, flags=re.MULTILINE)
    lock = re.sub(r'registry = "[^"]*"', 'registry = "pypi"', lock)
    return re.sub(r'(?<=^requires-python = ").*(?="$)', _widened, lock, count=1, flags=re.MULTILINE)


def _widened(range_: re.Match[str]) -> str:
    """One minor version more than pyproject.toml allows, whatever this lock says."""
    allowed = re.search(
        r'^requires-python = ">=(3\.\d+),<3\.(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    if allowed is None:
        sys.exit("lock.py: requires-python in pyproject.toml is not of the form >=3.X,<3.Y")
    return f">={allowed[1]}, <3.{int(allowed[2]) + 1}"


def resolve(seed: str | None, *options: str) -> Locked:
    """Lock pyproject.toml outside the working tree, with the versions of `seed` where they fit.

    Raises RuntimeError with uv's message.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "pyproject.toml", folder)
        lock = Path(folder, "uv.lock")
        if seed is not None:
            lock.write_text(seed)
        _uv(folder, "lock", *options)
        exported = _uv(folder, "export", "--frozen", "--no-header", "--no-annotate", "--no-emit-project")
        return Locked(strip(lock.read_text()), HEADER + exported)


def _uv(folder: str, *arguments: str) -> str:
    # A local index or wheel folder must not get into the files that everybody uses.
    clean = {
        k: v for k, v in os.environ.items() if not re.match(r"UV_(FIND_LINKS|(DEFAULT_|EXTRA_)?INDEX|NO_INDEX)", k)
    }
    command = ["uv", "--quiet", *arguments]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def without_hashes(requirements: str) -> str:
    return re.sub(r" \\\n    --hash=\S+", "", requirements)


def committed(name: str) -> str | None:
    shown = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else None


def check() -> str | None:
    """The first problem of the committed files, None if there is none. Needs the network where uv's cache is empty.

    Versions are compared. Hashes are not, because a registry may have got more files since they were written.
    """
    lock, requirements = committed("uv.lock"), committed("requirements.txt")
    if lock is None or requirements is None:
        return "uv.lock or requirements.txt is not committed"
    if "://" in lock + requirements:
        return "a committed file holds addresses; run scripts/lock.py and commit its output"
    if unhashed := [line for line in without_hashes(requirements).splitlines() if f"{line} \\\n" not in requirements][
        1:
    ]:
        return f"requirements.txt has no hash for {unhashed[0]}; run scripts/lock.py"
    try:
        current = resolve(lock, "--offline")
    except RuntimeError:
        current = resolve(lock)
    if current.lock != lock:
        return "the committed uv.lock does not fit pyproject.toml; run scripts/lock.py"
    if without_hashes(current.requirements) != without_hashes(requirements):
        return "the committed requirements.txt does not fit uv.lock; run scripts/lock.py"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Write uv.lock and requirements.txt without addresses.")
    choice = parser.add_mutually_exclusive_group()
    for name in ("--check", "--strip", "--upgrade"):
        choice.add_argument(name, action="store_true")
    arguments = parser.parse_args()
    if arguments.strip:
        sys.stdout.write(strip(sys.stdin.read()))
        return
    try:
        if arguments.check:
            if problem := check():
                sys.exit(f"lock.py: {problem}")
        else:
            locked = resolve(committed("uv.lock"), *(["--upgrade"] if arguments.upgrade else []))
            (ROOT / "uv.lock").write_text(locked.lock)
            (ROOT / "requirements.txt").write_text(locked.requirements)
    except RuntimeError as error:
        sys.exit(f"lock.py: {error}")


if __name__ == "__main__":
    main()
