"""A server that downloads a model and loads it: /health and the terminal tell how far it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.engines.hub import hub
from tests.server.serving import running

PIECE = 10_000_000
"""Bytes that the hub's client takes before it counts them."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of a tiny Llama, and a large file."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module)
    from tests.engines.tiny_local import write_llama

    folder = tmp_path / "repository"
    folder.mkdir()
    write_llama(folder)
    (folder / "notes.txt").write_bytes(bytes(2 * PIECE + PIECE // 2))
    return folder


def test_health_tells_what_is_loading_and_how_much_of_it_is_done(repository: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with hub(repository) as source:

        def watch(state: dict[str, Any]) -> None:
            assert state["status"] == "loading"
            told.append(state.get("loading", ""))
            if share(told[-1]):
                source.gate.set()

        flags = ("--model", "owner/name", "--stt", "sphinx", "--tts", "espeak", "--device", "cpu")
        folders: dict[str, Any] = {"HF_ENDPOINT": source.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        with running(tmp_path, *flags, watch=watch, **folders) as served:
            log = served.log
    assert any("name: libraries" in words for words in told), told
    assert {share(words) for words in told} & set(range(10, 91)), told
    assert "Loading weights: 100%" in log
    for step in ("libraries", "files", "weights"):
        assert log.count(f"name: loading {step}\n") == 1


def share(words: str) -> int:
    """Percent of the model's files that are there; 0 where nothing was said."""
    found = re.search(r"name: files (\d+)%", words)
    return int(found[1]) if found else 0
