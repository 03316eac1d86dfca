"""`python -m echosight.client.say`, as the README describes it."""

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
def test_the_response_to_a_recording_is_written_to_a_file(
    server: Server, tmp_path: Path, live: tuple[str, ...]
) -> None:
    run = say(tmp_path, str(HELLO), *live, "--url", server.url, "--out", "answer.wav", "--uid", f"say{live}")
    assert (run.returncode, run.stderr) == (0, "")
    assert "I heard: " in run.stdout
    assert decode_audio((tmp_path / "answer.wav").read_bytes()).seconds > 1
    assert ("endpoint" in run.stdout) == bool(live)


def test_the_request_is_printed_for_curl(tmp_path: Path) -> None:
    run = say(tmp_path, str(HELLO), "--text", "hi", "--json")
    (message,) = orjson.loads(run.stdout)["messages"]
    assert [item["type"] for item in message["content"]] == ["input_audio", "text"]


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_without_a_server_it_explains_how_to_start_one(tmp_path: Path, live: tuple[str, ...]) -> None:
    url = f"http://localhost:{free_port()}"
    run = say(tmp_path, str(HELLO), *live, "--url", url)
    assert run.returncode == 1
    assert run.stderr.startswith(f"say: nobody answers at {url} (")
    assert "uv run model_server.py" in run.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = say(tmp_path, "nowhere.wav")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("say: ")
    assert "nowhere.wav" in run.stderr
