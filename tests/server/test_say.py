"""`python -m echosight.client.say`, run as the README shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from echosight.audio.formats import decode_audio
from tests.server.serving import ROOT, Server, free_port

HELLO = ROOT / "docs" / "hello.wav"


def say(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echosight.client.say", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_the_response_to_a_recording_is_saved(server: Server, tmp_path: Path, live: tuple[str, ...]) -> None:
    completed = say(tmp_path, str(HELLO), *live, "--url", server.url, "--out", "answer.wav", "--uid", f"say{live}")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "I heard: " in completed.stdout
    assert decode_audio((tmp_path / "answer.wav").read_bytes()).seconds > 1
    assert ("endpoint" in completed.stdout) == bool(live)


def test_the_request_is_printed_for_curl(tmp_path: Path) -> None:
    completed = say(tmp_path, str(HELLO), "--text", "hi", "--json")
    (message,) = orjson.loads(completed.stdout)["messages"]
    assert [item["type"] for item in message["content"]] == ["input_audio", "text"]


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_without_a_server_the_error_says_how_to_start_one(tmp_path: Path, live: tuple[str, ...]) -> None:
    url = f"http://localhost:{free_port()}"
    completed = say(tmp_path, str(HELLO), *live, "--url", url)
    assert completed.returncode == 1
    assert completed.stderr.startswith(f"say: cannot connect to {url} (")
    assert "uv run model_server.py" in completed.stderr


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    completed = say(tmp_path, "nowhere.wav")
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.startswith("say: ")
    assert "nowhere.wav" in completed.stderr
