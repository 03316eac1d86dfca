"""The application under a uvicorn that other people start, with settings from the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import model_server
from echosight.app import create_app
from echosight.server.manager import StreamManager
from tests.server.echosight_client import body, typed
from tests.server.serving import ROOT, free_port

START_S = 60


@pytest.mark.parametrize("target", [("model_server:app",), ("--factory", "model_server:create_app")])
def test_uvicorn_serves_the_application(tmp_path: Path, target: tuple[str, ...]) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "uvicorn", *target, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL_ID": "stub", "SERVER_NAME": "under uvicorn"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(process, url)
        assert httpx.get(url).json()["name"] == "under uvicorn"
        response = httpx.post(f"{url}/completions", json=body(typed("hello")), headers={"uid": "me"}, timeout=30)
        assert '"finish_reason":"stop"' in response.text
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)  # the one thing that sends no event: a server that does not listen yet
    raise AssertionError("uvicorn did not start")


def test_the_program_exports_the_factory_and_the_manager() -> None:
    assert model_server.create_app is create_app
    assert model_server.StreamManager is StreamManager


def test_it_has_no_attribute_but_its_own() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        model_server.nonsense  # noqa: B018


def test_the_application_is_made_once_and_only_when_it_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODEL_ID", "stub")
    monkeypatch.chdir(tmp_path)
    assert "app" not in vars(model_server)
    try:
        assert model_server.app is model_server.app
    finally:
        vars(model_server).pop("app", None)
