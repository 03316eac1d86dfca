"""The committed lock files: versions for everybody, addresses of nobody."""

from __future__ import annotations

import re
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


def committed(name: str) -> str:
    command = ["git", "show", f"HEAD:{name}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_committed_lock_is_stripped() -> None:
    lock = committed("uv.lock")
    assert "://" not in lock
    assert strip(lock) == lock


def test_the_requirements_have_the_versions_of_the_lock_and_hashes() -> None:
    requirements = committed("requirements.txt")
    assert "://" not in requirements
    locked = {(package["name"], package.get("version")) for package in tomllib.loads(committed("uv.lock"))["package"]}
    pinned = re.findall(r"^([\w.-]+)==([\w.]+)", requirements, re.MULTILINE)
    assert set(pinned) <= locked
    assert len(re.findall(r"^[\w.-]+==[^\n]* \\\n    --hash=sha256:[0-9a-f]{64}", requirements, re.MULTILINE)) == len(
        pinned
    )


def test_the_requirements_are_the_base_install() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", committed("requirements.txt"), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = {re.split(r"[\s\[><=;]", name)[0] for name in project["project"]["dependencies"]}
    assert direct <= pinned
    assert not pinned & {"pytest", "mypy", "ruff", "torch"}


def test_running_the_server_installs_no_tools_of_developers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["uv"]["default-groups"] == ["embedded"]
    assert "pytest" in str(project["project"]["optional-dependencies"]["dev"])
    assert "dev" not in project["dependency-groups"]
