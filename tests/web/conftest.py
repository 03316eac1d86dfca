"""A real browser with a fake microphone and camera, driven by scenarios in `scenarios.mjs`."""

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

Act = Callable[..., dict[str, Any]]
"""`act("name", url, wav=…, camera=…, help={ask: do})`: run a scenario; what it saw."""

QUESTION = "please tell me a long story about the king and the queen and the old house on the hill"
INTERRUPTION = "can you see the cup on my table"


@pytest.fixture(scope="session")
def act(node: str) -> Act:
    chrome = shutil.which("chromium")
    if chrome is None:
        pytest.skip("chromium is not installed")
    _install()

    def run(name: str, url: str, *args: str, help: dict[str, Callable[[], None]] | None = None, **given: Any) -> Any:
        media = {kind: str(given.pop(kind)) for kind in ("wav", "camera") if kind in given}
        said = orjson.dumps({"url": url, "chrome": chrome, "media": media, "args": args, **given})
        command = [node, str(HERE / "scenarios.mjs"), name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE) as process:
            assert process.stdin and process.stdout
            process.stdin.write(said + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = orjson.loads(line)
                if "saw" in answer:
                    return answer["saw"]
                assert "ask" in answer, answer.get("failed", line)
                (help or {})[answer["ask"]]()
                process.stdin.write(b"\n")
                process.stdin.flush()
        raise AssertionError(f"the scenario {name} ended without a word")

    return run


def _install() -> None:
    """The node packages, as locked."""
    lock = HERE / "package-lock.json"
    installed = HERE / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=HERE, check=True, timeout=120, capture_output=True)


@pytest.fixture(scope="session")
def node() -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    return program


@pytest.fixture(scope="session")
def question(flite: Flite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question, with silence around it: a fake microphone loses its first moments and repeats its last."""
    return _wav(tmp_path_factory.mktemp("microphone") / "question.wav", 1.0, flite(QUESTION).pcm, 20.0)


@pytest.fixture(scope="session")
def interruption(flite: Flite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question, and something else while it is answered."""
    path = tmp_path_factory.mktemp("microphone") / "interruption.wav"
    return _wav(path, 1.0, flite(QUESTION).pcm, 3.0, flite(INTERRUPTION).pcm, 20.0)


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a picture that moves."""
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
    """A picture that does not move."""
    path = tmp_path_factory.mktemp("camera") / "still.y4m"
    frame = b"FRAME\n" + np.tile(np.arange(320, dtype=np.uint8), 240).tobytes() + bytes([128]) * (320 * 240 // 2)
    path.write_bytes(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n" + frame * 10)
    return path


def _wav(path: Path, *pieces: float | bytes) -> Path:
    """Seconds of silence and PCM16 at 16 kHz, one after the other."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        for piece in pieces:
            file.writeframes(piece if isinstance(piece, bytes) else bytes(2 * round(16_000 * piece)))
    return path
