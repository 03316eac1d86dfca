"""A real browser with a fake microphone and camera that runs the scenarios of `scenarios.mjs`."""

from __future__ import annotations

import shutil
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.conftest import Flite

HERE = Path(__file__).parent

RunScenario = Callable[..., dict[str, Any]]
"""`run_scenario("name", url, *chromium_flags, wav=…, camera=…, actions={name: function})`: the scenario's result.

The scenario may request the actions; other keywords become its parameters.
"""

QUESTION = "please tell me a long story about the king and the queen and the old house on the hill"
INTERRUPTION = "can you see the cup on my table"


@pytest.fixture(scope="session")
def run_scenario(node: str) -> RunScenario:
    chrome = shutil.which("chromium")
    if chrome is None:
        pytest.skip("chromium is not installed")
    _install()

    def run(
        name: str, url: str, *args: str, actions: dict[str, Callable[[], None]] | None = None, **params: Any
    ) -> Any:
        media = {kind: str(params.pop(kind)) for kind in ("wav", "camera") if kind in params}
        request = orjson.dumps({"url": url, "chrome": chrome, "media": media, "args": args, **params})
        command = [node, str(HERE / "scenarios.mjs"), name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE) as process:
            assert process.stdin and process.stdout
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                message = orjson.loads(line)
                if "result" in message:
                    return message["result"]
                assert "action" in message, message.get("failed", line)
                (actions or {})[message["action"]]()
                process.stdin.write(b"\n")
                process.stdin.flush()
        raise AssertionError(f"the scenario {name} ended without a result")

    return run


def _install() -> None:
    """Install the node packages of the lock file, where others or none are installed."""
    installed = HERE / "node_modules" / ".package-lock.json"
    if not installed.exists() or _versions(installed) != _versions(HERE / "package-lock.json"):
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=HERE, check=True, timeout=120, capture_output=True)


def _versions(lock: Path) -> dict[str, str]:
    packages: dict[str, dict[str, str]] = orjson.loads(lock.read_bytes())["packages"]
    return {name: package["version"] for name, package in packages.items() if name}


@pytest.fixture(scope="session")
def node() -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    return program


@pytest.fixture(scope="session")
def question(flite: Flite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question between silences: Chromium's fake microphone may lose the first moments of a file."""
    return _wav(tmp_path_factory.mktemp("microphone") / "question.wav", 1.0, flite(QUESTION).pcm, 20.0)


@pytest.fixture(scope="session")
def interruption(flite: Flite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question, and other speech during the response."""
    path = tmp_path_factory.mktemp("microphone") / "interruption.wav"
    return _wav(path, 1.0, flite(QUESTION).pcm, 3.0, flite(INTERRUPTION).pcm, 20.0)


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of moving video."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    width, height = 320, 240
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for number in range(20):
            luma = np.full((height, width), 40, np.uint8)
            luma[60:180, 10 * number : 10 * number + 90] = 220
            file.write(
                b"FRAME\n"
                + luma.tobytes()
                + bytes([110]) * (width * height // 4)
                + bytes([150]) * (width * height // 4)
            )
    return path


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video that does not move."""
    path = tmp_path_factory.mktemp("camera") / "still.y4m"
    frame = b"FRAME\n" + np.tile(np.arange(320, dtype=np.uint8), 240).tobytes() + bytes([128]) * (320 * 240 // 2)
    path.write_bytes(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n" + frame * 10)
    return path


def _wav(path: Path, *parts: float | bytes) -> Path:
    """A WAV file of silences (in seconds) and PCM16 at 16 kHz, one after the other."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        for part in parts:
            file.writeframes(part if isinstance(part, bytes) else bytes(2 * round(16_000 * part)))
    return path
