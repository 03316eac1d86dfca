"""The page in a real Chromium against a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import ROOT, Server, free_port, running
from tests.web.conftest import QUESTION, Act

AUDIBLE = 0.01
Seen = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as shared:
        yield shared


@pytest.fixture(scope="module")
def talk(act: Act, server: Server, interruption: Path, camera: Path) -> Seen:
    """A question, its answer, and an interruption of it."""
    return act("talk", server.url, wav=interruption, camera=camera)


def test_known_words_appear(talk: Seen) -> None:
    heard = talk["after"][0]["text"].split()
    assert sum(word in heard for word in QUESTION.split()) >= 0.8 * len(QUESTION.split())


def test_the_answer_is_shown_as_it_is_heard(talk: Seen) -> None:
    answer = talk["during"][1]
    assert answer["heard"]
    assert answer["ahead"]
    assert answer["text"].startswith("I heard: please")


def test_the_answer_is_audible(talk: Seen) -> None:
    loud = [at for at, level in talk["sound"]["heard"] if level > AUDIBLE]
    assert len(loud) > 60  # of 256 samples at 24 kHz: more than 0.6 s


def test_talking_over_the_answer_silences_it(talk: Seen) -> None:
    """From 200 ms within the second utterance to its end, nothing comes out of the loudspeaker."""
    onset, end = utterances(talk["sound"]["said"])[1]
    before = [level for at, level in talk["sound"]["heard"] if onset - 500 < at < onset]
    during = [level for at, level in talk["sound"]["heard"] if onset + 200 < at < end]
    assert max(before) > AUDIBLE
    assert during
    assert max(during) == 0.0


def test_cut_words_are_struck_through(talk: Seen) -> None:
    cut = talk["after"][1]
    assert cut["heard"]
    assert cut["cut"]
    assert not cut["ahead"]
    assert cut["heard"] in talk["log"]
    assert cut["cut"].strip() not in talk["log"]


def test_the_waterfall_of_a_turn_shows(talk: Seen) -> None:
    stages = dict(talk["after"][3]["stages"])
    assert list(stages) == ["endpoint", "transcript", "first_text", "first_audio", "heard"]
    assert all(ms.endswith(" ms") for ms in stages.values())


def test_the_picture_that_was_sent_shows(talk: Seen) -> None:
    assert talk["after"][0]["pictures"] == 1
    assert "320 by 240" in talk["after"][1]["text"]


def test_nothing_is_asked_of_anybody_else(talk: Seen) -> None:
    assert talk["outside"] == []


def test_the_page_makes_no_mistake(talk: Seen) -> None:
    assert talk["mistakes"] == []


def test_a_conversation_is_accessible(talk: Seen) -> None:
    assert talk["violations"] == []


def test_ending_lets_go_of_the_camera(talk: Seen) -> None:
    assert talk["tracks"] is None


def utterances(levels: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(begin, end) of what was said, in ms, with pauses of less than half a second inside."""
    found: list[tuple[float, float]] = []
    for at, level in levels:
        if level <= AUDIBLE:
            continue
        if found and at - found[-1][1] < 500:
            found[-1] = found[-1][0], at
        else:
            found.append((at, at))
    return found


def test_a_killed_server_is_reconnected_to(act: Act, tmp_path: Path) -> None:
    """And the new one is told what was said before."""
    with running(tmp_path) as server:
        successors: list[subprocess.Popen[bytes]] = []

        def kill() -> None:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()

        def start() -> None:
            environment = {**os.environ, "LOG_DIR": str(tmp_path)}
            successors.append(subprocess.Popen(server.process.args, cwd=tmp_path, env=environment))

        try:
            saw = act("reconnect", server.url, help={"kill the server": kill, "start the server": start})
        finally:
            for process in successors:
                process.terminate()
                process.wait()
    assert "Connection lost." in saw["lost"]
    assert saw["gone"]
    assert "my name is Ada" in saw["turns"][3]["text"]
    assert saw["mistakes"] == []


def test_a_lost_connection_is_resumed(act: Act, server: Server) -> None:
    saw = act("resume", server.url)
    assert saw["aside"] == 0
    assert "my name is Ada" in saw["turns"][3]["text"]


def test_refused_permission_is_explained(act: Act, server: Server, question: Path) -> None:
    saw = act("refused", server.url, wav=question)
    assert saw["microphone"].startswith("Microphone refused.")
    assert saw["camera"].startswith("Camera refused.")
    assert saw["violations"] == []


def test_missing_devices_are_explained(act: Act, server: Server) -> None:
    saw = act("deviceless", server.url)
    assert saw["said"].startswith("No microphone found.")
    assert saw["status"] == "Ready"


def test_an_insecure_address_is_explained(act: Act, server: Server) -> None:
    """With the command that helps; typing works all the same."""
    saw = act("insecure", f"http://echosight.test:{server.port}", "--host-resolver-rules=MAP echosight.test 127.0.0.1")
    assert saw["said"].startswith("Not a secure address.")
    assert "--https" in saw["said"]
    assert "typing works" in saw["heard"]


def test_the_screen_is_a_second_source_of_pictures(act: Act, server: Server, question: Path, still: Path) -> None:
    granted = "--use-fake-ui-for-media-stream"
    saw = act("screen", server.url, granted, wav=question, camera=still)
    assert {alt.split()[3] for alt in saw["shown"]} == {"camera", "screen"}
    assert saw["hidden"]
    assert saw["pressed"] == "false"


def test_a_phone_may_use_its_camera_over_https(act: Act, tmp_path: Path, question: Path, still: Path) -> None:
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
    printed = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=printed, stderr=subprocess.STDOUT) as server:
        assert server.stdout is not None
        log: list[str] = []
        try:
            for line in server.stdout:
                log.append(line.decode())
                if "is ready" in log[-1]:
                    break
            mapped = "--host-resolver-rules=MAP echosight.test 127.0.0.1"
            saw = act("phone", f"https://echosight.test:{port}", mapped, wav=question, camera=still)
        finally:
            server.terminate()
    said = "".join(log)
    assert f"https://127.0.0.1:{port}/" in said
    assert "█▀▀▀▀▀█" in said
    assert saw["secure"]
    assert saw["turns"][0]["pictures"] == 1
    assert saw["turns"][1]["heard"]
    assert saw["mistakes"] == []


def test_a_full_server_is_explained_and_waited_for(act: Act, tmp_path: Path) -> None:
    with running(tmp_path, "--max-sessions", "1", "--linger-s", "0") as server:
        saw = act("full", server.url)
    assert saw["said"].startswith("The server is full.")
    assert saw["gone"]


def test_a_wrong_token_is_explained(act: Act, tmp_path: Path) -> None:
    with running(tmp_path, API_TOKENS="sesame") as server:
        saw = act("token", server.url, token="sesame")
    assert saw["said"].startswith("This server asks for a token.")
    assert saw["wrong"].startswith("This server asks for a token.")
    assert saw["focused"] == "token"
    assert "sesame" not in saw["kept"]


def test_push_to_talk_by_keyboard_alone(act: Act, server: Server, question: Path) -> None:
    saw = act("keyboard", server.url, wav=question)
    heard = saw["turns"][0]["text"].split()
    assert sum(word in heard for word in QUESTION.split()) >= 0.8 * len(QUESTION.split())
    assert saw["turns"][1]["cut"]
    assert saw["mistakes"] == []


def test_it_is_light_enough_for_slow_networks(act: Act, server: Server, question: Path) -> None:
    saw = act("slow", server.url, wav=question)
    assert 50_000 < saw["bytes"] < 200_000
    assert saw["turns"][1]["heard"]
    assert saw["shift"] == []
    assert saw["talk_shift"] < 0.1
    assert saw["mistakes"] == []


def test_every_look_is_accessible(act: Act, server: Server) -> None:
    saw = act("looks", server.url)
    assert len(saw["violations"]) == 8
    assert not any(saw["violations"].values()), saw["violations"]
    assert max(saw["widths"].values()) <= 0  # nothing to scroll sideways
    assert not any(saw["off"].values()), saw["off"]  # and, down to 320 pixels, no control where nobody can reach it


def test_choices_reach_the_server(act: Act, server: Server, question: Path, still: Path) -> None:
    saw = act("choices", server.url, wav=question, camera=still)
    subscribe, *more = [message for message in saw["sent"] if "type" in message]
    assert subscribe["type"] == "subscribe"
    assert subscribe["turn_detection"] == {"threshold": 0.5, "silence_duration_ms": 384}
    assert subscribe["record"] is False  # nothing is recorded unless the person asks for it
    assert more[-1]["type"] == "configure"
    assert more[-1]["turn_detection"] is None
    assert {"threshold": 0.7, "silence_duration_ms": 640} in [message.get("turn_detection") for message in more]
    assert more[-1]["instructions"] == saw["kept"] == "Be brief."
    assert saw["sent"].count({"picture": True}) == 1  # the camera shows the same all the time
