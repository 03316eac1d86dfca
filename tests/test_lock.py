from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LOCK = """version = 1
revision = 3
requires-python = ">=3.11, <3.14"

[[package]]
name = "echosight"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "thing", version = "1.2", source = { registry = "https://registry.example/simple" }, marker = "x" },
]

[[package]]
name = "thing"
version = "1.2"
source = { registry = "https://registry.example/simple" }
sdist = { url = "https://files.example/thing-1.2.tar.gz", hash = "sha256:00", upload-time = "2026-01-01T00:00:00Z" }
wheels = [
    { url = "https://files.example/thing-1.2-cp311.whl", hash = "sha256:01" },
    { url = "https://files.example/thing-1.2-cp312.whl", hash = "sha256:02" },
]

[[package]]
name = "last"
version = "3"
source = { registry = "https://registry.example/simple" }
wheels = [
    { url = "https://files.example/last-3-py3.whl", hash = "sha256:03" },
]
"""


def strip(lock: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "lock.py"), "--strip"]
    return subprocess.run(command, input=lock, capture_output=True, text=True, check=True, timeout=60).stdout


def test_versions_stay_and_addresses_go() -> None:
    stripped = strip(LOCK)
    assert "://" not in stripped
    assert "sha256" not in stripped
    before, after = tomllib.loads(LOCK), tomllib.loads(stripped)
    assert [(p["name"], p["version"]) for p in after["package"]] == [
        (p["name"], p["version"]) for p in before["package"]
    ]
    assert after["package"][0]["dependencies"] == [
        {"name": "thing", "version": "1.2", "source": {"registry": "pypi"}, "marker": "x"}
    ]
    assert after["package"][1] == {"name": "thing", "version": "1.2", "source": {"registry": "pypi"}}


def test_the_python_range_differs_from_the_project_so_that_uv_fills_it_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    written = tomllib.loads(strip(LOCK))["requires-python"]
    assert project == ">=3.11,<3.14"
    assert written == ">=3.11, <3.15"


def test_stripping_twice_changes_nothing() -> None:
    assert strip(strip(LOCK)) == strip(LOCK)


def test_the_committed_lock_is_stripped() -> None:
    committed = subprocess.run(
        ["git", "show", "HEAD:uv.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "://" not in committed
    assert strip(committed) == committed
