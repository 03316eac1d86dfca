"""The page's sound processing, run by node's own test runner."""

from __future__ import annotations

import subprocess
from pathlib import Path

TESTS = Path(__file__).parent / "worklets.test.mjs"


def test_sound(node: str) -> None:
    ran = subprocess.run([node, "--test", str(TESTS)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout
    assert "# pass 13" in ran.stdout
