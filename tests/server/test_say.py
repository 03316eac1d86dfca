"""`python -m echosight.client.say`, as whoever follows the README runs it."""

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
def test_a_recording_is_answered_into_a_file(server: Server, tmp_path: Path, live: tuple[str, ...]) -> None:
    said = say(tmp_path, str(HELLO), *live, "--url", server.url, "--out", "answer.wav", "--uid", f"say{live}")
    assert (said.returncode, said.stderr) == (0, "")
    assert "I heard: " in said.stdout
    assert decode_audio((tmp_path / "answer.wav").read_bytes()).seconds > 1
    assert ("endpoint" in said.stdout) == bool(live)


def test_the_request_is_printed_for_curl(tmp_path: Path) -> None:
    said = say(tmp_path, str(HELLO), "--text", "hi", "--json")
    (message,) = orjson.loads(said.stdout)["messages"]
    assert [item["type"] for item in message["content"]] == ["input_audio", "text"]


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_without_a_server_it_says_how_to_start_one(tmp_path: Path, live: tuple[str, ...]) -> None:
    url = f"http://localhost:{free_port()}"
    said = say(tmp_path, str(HELLO), *live, "--url", url)
    assert said.returncode == 1
    assert said.stderr.startswith(f"say: nobody answers at {url} (")
    assert "uv run model_server.py" in said.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    said = say(tmp_path, "nowhere.wav")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("say: ")
    assert "nowhere.wav" in said.stderr
