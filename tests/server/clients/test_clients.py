"""Unmodified clients against a real server with real speech.

Clients are tested where they are installed: those of npm by `npm ci` in this folder, those of Python for the
interpreter that ECHOSIGHT_CLIENTS_PYTHON names (see requirements.txt). With ECHOSIGHT_CLIENTS_TABLE, the table of what
works is written to that file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from tests.conftest import Flite
from tests.server.clients.scenarios import SCENARIOS
from tests.server.serving import Server, running

FOLDER = Path(__file__).parent
PYTHON = os.environ.get("ECHOSIGHT_CLIENTS_PYTHON", sys.executable)
SPOKEN = "go forward ten meters"
RECORDED = "pocketsphinx__test_data_goforward.wav"
"""A recording of the same words by a human."""


@dataclass(frozen=True)
class Client:
    """A package and the command that drives it."""

    label: str
    package: str
    command: tuple[str, ...]
    npm: bool = False

    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        return _npm_version(self.package) if self.npm else _python_version(self.package)


CLIENTS = (
    Client("openai, GA", "openai", (PYTHON, "drive_openai.py", "ga")),
    Client("openai, beta", "openai", (PYTHON, "drive_openai.py", "beta")),
    Client("openai-agents", "openai-agents", (PYTHON, "drive_openai_agents.py")),
    Client("pipecat-ai", "pipecat-ai", (PYTHON, "drive_pipecat.py")),
    Client("livekit-plugins-openai", "livekit-plugins-openai", (PYTHON, "drive_livekit.py")),
    Client("openai (npm)", "openai", (sys.executable, "drive_node.py", "openai"), npm=True),
    Client("@openai/agents-realtime", "@openai/agents-realtime", ("node", "drive_agents_realtime.mjs"), npm=True),
    Client(
        "openai-realtime-api, beta",
        "openai-realtime-api",
        (sys.executable, "drive_node.py", "openai-realtime-api"),
        npm=True,
    ),
    Client("ws", "ws", (sys.executable, "drive_node.py", "ws"), npm=True),
)


@cache
def _python_version(package: str) -> str | None:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() or None


def _npm_version(package: str) -> str | None:
    manifest = FOLDER / "node_modules" / package / "package.json"
    if shutil.which("node") is None or not manifest.exists():
        return None
    version: str = json.loads(manifest.read_text())["version"]
    return version


@pytest.fixture(scope="module")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("clients"), program=FOLDER / "tool_server.py") as server:
        yield server


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory, flite: Flite) -> Path:
    """PCM16 at 24 kHz, as clients of this protocol send it: a recording where there is one, else a synthetic voice."""
    path = tmp_path_factory.mktemp("speech") / "speech.pcm"
    folder = os.environ.get("ECHOSIGHT_SPEECH")
    chunk = decode_audio((Path(folder) / RECORDED).read_bytes()) if folder else flite(SPOKEN)
    path.write_bytes(resample(chunk, 24_000).pcm)
    return path


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, set[str]]]:
    """Client -> the scenarios that have passed so far; written to ECHOSIGHT_CLIENTS_TABLE at the end."""
    passed: dict[str, set[str]] = {}
    yield passed
    if path := os.environ.get("ECHOSIGHT_CLIENTS_TABLE"):
        Path(path).write_text(_table(passed))


def _table(passed: dict[str, set[str]]) -> str:
    lines = ["# Clients that are known to work", "", "Written by `tests/server/clients/test_clients.py`.", ""]
    lines += [f"| client | version | {' | '.join(SCENARIOS)} |", "|---" * (len(SCENARIOS) + 2) + "|"]
    for client in CLIENTS:
        if client.label in passed:
            marks = ["✓" if name in passed[client.label] else "✗" for name in SCENARIOS]
            lines.append(f"| {client.label} | {client.version()} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.label)
def test_a_client_masters_a_scenario(
    client: Client, scenario: str, tool_server: Server, speech: Path, table: dict[str, set[str]]
) -> None:
    if client.version() is None:
        pytest.skip(f"{client.package} is not installed")
    passed = table.setdefault(client.label, set())
    program, script, *rest = client.command
    command = [program, str(FOLDER / script), *rest, tool_server.url, str(speech), scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3_000:]
    passed.add(scenario)
