"""Check a change before it is committed.

    uv run python scripts/check.py --quick    # format, lint, types, fast tests: about 20 seconds
    uv run python scripts/check.py            # the same with all tests
    uv run python scripts/check.py --fix      # format, sort imports and write the generated docs first

`.ci/run` checks more: locked versions, clean environments, the README's commands.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FAST_TESTS = (
    "tests/test_architecture.py",
    "tests/test_conversation.py",
    "tests/test_docs.py",
    "tests/test_options.py",
    "tests/test_settings.py",
    "tests/session",
    "tests/turns",
    "tests/vision",
    "tests/wire",
)
"""Tests without servers, models, browsers and other processes."""

FIXES = (
    ("ruff", "format", "."),
    ("ruff", "check", "--fix", "--quiet", "."),
    (sys.executable, "scripts/docs.py"),
)
CHECKS = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy", "."),
}


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    passed: bool
    seconds: float
    output: str


def run(name: str, command: tuple[str, ...]) -> Result:
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Result(name, done.returncode == 0, time.monotonic() - started, done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a change before it is committed.")
    parser.add_argument("--quick", action="store_true", help="run only the fast tests")
    parser.add_argument("--fix", action="store_true", help="format, sort imports and write the generated docs first")
    args = parser.parse_args()
    if args.fix:
        for command in FIXES:
            subprocess.run(command, cwd=ROOT, check=True)
    tests = (sys.executable, "-m", "pytest", "-q", "-W", "error", *(FAST_TESTS if args.quick else ()))
    # The type check and the tests take longest and run at the same time.
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda check: run(*check), {"tests": tests, **CHECKS}.items()))
    for result in results:
        print(f"{'ok  ' if result.passed else 'FAIL'}  {result.name:8}{result.seconds:6.1f} s")
    failed = [result for result in results if not result.passed]
    for result in failed:
        print(f"\n--- {result.name}\n{result.output.strip()}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
