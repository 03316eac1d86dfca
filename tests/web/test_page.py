"""The page in a real Chromium against a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import ROOT, Server, free_port, running
from tests.web.conftest import QUESTION, RunScenario

AUDIBLE = 0.01
Result = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as shared:
        yield shared


@pytest.fixture(scope="module")
def talk(run_scenario: RunScenario, server: Server, interruption: Path, camera: Path) -> Result:
    """A question, its response, and an interruption."""
    return run_scenario("talk", server.url, wav=interruption, camera=camera)


def test_the_transcript_shows_the_spoken_words(talk: Result) -> None:
    heard = re.findall(r"[a-z]+", talk["after"][0]["text"].lower())
    assert sum(word in heard for word in QUESTION.split()) >= 0.8 * len(QUESTION.split())


def test_the_response_shows_what_was_heard_of_it(talk: Result) -> None:
    response = talk["during"][1]
    assert response["heard"]
    assert response["unheard"]
    assert response["text"].lower().startswith("i heard: please")


def test_the_response_is_audible(talk: Result) -> None:
    loud = [time for time, level in talk["levels"]["playback"] if level > AUDIBLE]
    assert len(loud) > 60  # blocks of 256 samples at 24 kHz: more than 0.6 s


def test_speech_over_the_response_silences_it(talk: Result) -> None:
    """From 200 ms after the onset of the second utterance to its end, the loudspeaker is silent."""
    onset, end = utterances(talk["levels"]["microphone"])[1]
    before = [level for time, level in talk["levels"]["playback"] if onset - 500 < time < onset]
    during = [level for time, level in talk["levels"]["playback"] if onset + 200 < time < end]
    assert max(before) > AUDIBLE
    assert during
    assert max(during) == 0.0


def test_words_that_were_not_heard_are_struck_through(talk: Result) -> None:
    response = talk["after"][1]
    assert response["heard"]
    assert response["deleted"]
    assert not response["unheard"]
    assert response["heard"] in talk["log"]
    assert response["deleted"].strip() not in talk["log"]


def test_the_waterfall_of_a_response_is_shown(talk: Result) -> None:
    stages = dict(talk["after"][3]["stages"])
    assert list(stages) == ["endpoint", "transcript", "first_text", "first_audio", "heard"]
    assert all(ms.endswith(" ms") for ms in stages.values())


def test_the_image_that_was_sent_is_shown(talk: Result) -> None:
    assert talk["after"][0]["images"] == 1
    assert "320 by 240" in talk["after"][1]["text"]


def test_the_page_sends_requests_to_its_server_only(talk: Result) -> None:
    assert talk["foreignRequests"] == []


def test_the_page_raises_no_error(talk: Result) -> None:
    assert talk["errors"] == []


def test_a_conversation_is_accessible(talk: Result) -> None:
    assert talk["violations"] == []


def test_ending_the_conversation_closes_the_camera(talk: Result) -> None:
    assert talk["stream"] is None


def utterances(levels: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(start, end) of each utterance in ms; pauses of less than half a second are part of it."""
    found: list[tuple[float, float]] = []
    for time, level in levels:
        if level <= AUDIBLE:
            continue
        if found and time - found[-1][1] < 500:
            found[-1] = found[-1][0], time
        else:
            found.append((time, time))
    return found


def test_the_page_reconnects_to_a_restarted_server(run_scenario: RunScenario, tmp_path: Path) -> None:
    """The new server receives the conversation so far."""
    with running(tmp_path) as server:
        successors: list[subprocess.Popen[bytes]] = []

        def kill() -> None:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()

        def start() -> None:
            environment = {**os.environ, "LOG_DIR": str(tmp_path)}
            successors.append(subprocess.Popen(server.process.args, cwd=tmp_path, env=environment))

        try:
            actions = {"kill the server": kill, "start the server": start}
            result = run_scenario("reconnect", server.url, actions=actions)
        finally:
            for process in successors:
                process.terminate()
                process.wait()
    assert "Connection lost." in result["lost"]
    assert result["noticeHidden"]
    assert "my name is Ada" in result["entries"][3]["text"]
    assert result["errors"] == []


def test_a_lost_connection_resumes_the_session(run_scenario: RunScenario, server: Server) -> None:
    result = run_scenario("resume", server.url)
    assert result["notes"] == 0
    assert "my name is Ada" in result["entries"][3]["text"]


def test_denied_permission_is_explained(run_scenario: RunScenario, server: Server, question: Path) -> None:
    result = run_scenario("denied", server.url, wav=question)
    assert result["microphone"].startswith("Microphone blocked.")
    assert result["camera"].startswith("Camera blocked.")
    assert result["violations"] == []


def test_missing_devices_are_explained(run_scenario: RunScenario, server: Server) -> None:
    result = run_scenario("deviceless", server.url)
    assert result["notice"].startswith("No microphone found.")
    assert result["status"] == "Ready"


def test_an_insecure_address_is_explained(run_scenario: RunScenario, server: Server) -> None:
    """The notice shows the command that helps; typing works."""
    result = run_scenario(
        "insecure", f"http://echosight.test:{server.port}", "--host-resolver-rules=MAP echosight.test 127.0.0.1"
    )
    assert result["notice"].startswith("Not a secure address.")
    assert "--https" in result["notice"]
    assert "typing works" in result["heard"]


def test_the_screen_is_a_second_source_of_images(
    run_scenario: RunScenario, server: Server, question: Path, still: Path
) -> None:
    granted = "--use-fake-ui-for-media-stream"
    result = run_scenario("screen", server.url, granted, wav=question, camera=still)
    assert {alt.split()[3] for alt in result["alts"]} == {"camera", "screen"}
    assert result["hidden"]
    assert result["pressed"] == "false"


def test_a_phone_may_use_its_camera_over_https(
    run_scenario: RunScenario, tmp_path: Path, question: Path, still: Path
) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-u",
        str(ROOT / "model_server.py"),
        "--https",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "LOG_DIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.STDOUT) as server:
        assert server.stdout is not None
        log: list[str] = []
        try:
            for line in server.stdout:
                log.append(line.decode())
                if "is ready" in log[-1]:
                    break
            mapped = "--host-resolver-rules=MAP echosight.test 127.0.0.1"
            result = run_scenario("phone", f"https://echosight.test:{port}", mapped, wav=question, camera=still)
        finally:
            server.terminate()
    printed_log = "".join(log)
    assert f"https://127.0.0.1:{port}/" in printed_log
    assert "█▀▀▀▀▀█" in printed_log
    assert result["secure"]
    assert result["entries"][0]["images"] == 1
    assert result["entries"][1]["heard"]
    assert result["errors"] == []


def test_a_full_server_is_explained_and_retried(run_scenario: RunScenario, tmp_path: Path) -> None:
    with running(tmp_path, "--max-sessions", "1", "--linger-s", "0") as server:
        result = run_scenario("full", server.url)
    assert result["notice"].startswith("The server is full.")
    assert result["noticeHidden"]


def test_a_missing_and_a_wrong_token_are_explained(run_scenario: RunScenario, tmp_path: Path) -> None:
    with running(tmp_path, API_TOKENS="sesame") as server:
        result = run_scenario("token", server.url, token="sesame")
    assert result["missing"].startswith("This server requires a token.")
    assert result["wrong"].startswith("This server requires a token.")
    assert result["focused"] == "token"
    assert "sesame" not in result["stored"]


def test_push_to_talk_works_with_the_keyboard_alone(run_scenario: RunScenario, server: Server, question: Path) -> None:
    result = run_scenario("keyboard", server.url, wav=question)
    heard = result["entries"][0]["text"].split()
    assert sum(word in heard for word in QUESTION.split()) >= 0.8 * len(QUESTION.split())
    assert result["entries"][1]["deleted"]
    assert result["errors"] == []


def test_the_page_works_on_slow_networks(run_scenario: RunScenario, server: Server, question: Path) -> None:
    result = run_scenario("slow", server.url, wav=question)
    assert 50_000 < result["bytes"] < 200_000
    assert result["entries"][1]["heard"]
    assert result["shifts"] == []
    assert result["turnShift"] < 0.1
    assert result["errors"] == []


def test_every_layout_is_accessible(run_scenario: RunScenario, server: Server) -> None:
    result = run_scenario("layouts", server.url)
    assert len(result["violations"]) == 8
    assert not any(result["violations"].values()), result["violations"]
    assert max(result["overflows"].values()) <= 0  # no horizontal scrolling
    assert not any(result["clipped"].values()), result[
        "clipped"
    ]  # down to 320 pixels every control is inside the window


def test_settings_are_sent_to_the_server(
    run_scenario: RunScenario, server: Server, question: Path, still: Path
) -> None:
    result = run_scenario("settings", server.url, wav=question, camera=still)
    subscribe, *more = [message for message in result["sent"] if "type" in message]
    assert subscribe["type"] == "subscribe"
    assert subscribe["turn_detection"] == {"threshold": 0.5, "silence_duration_ms": 384}
    assert subscribe["record"] is False  # recording is opt-in
    assert more[-1]["type"] == "configure"
    assert more[-1]["turn_detection"] is None
    assert {"threshold": 0.7, "silence_duration_ms": 640} in [message.get("turn_detection") for message in more]
    assert more[-1]["instructions"] == result["instructions"] == "Be brief."
    assert result["sent"].count({"image": True}) == 1  # the camera's video does not change
