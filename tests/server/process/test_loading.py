"""While a server downloads and loads a model, /health and the terminal report its progress."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.engines.hub import hub
from tests.server.serving import running

PIECE = 10_000_000
"""Bytes after which the hub's client reports progress."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository: a tiny Llama and a large file."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module)
    from tests.engines.tiny_local import write_llama

    folder = tmp_path / "repository"
    folder.mkdir()
    write_llama(folder)
    (folder / "notes.txt").write_bytes(bytes(2 * PIECE + PIECE // 2))
    return folder


def test_health_reports_what_is_loading_and_how_much_of_it_is_done(repository: Path, tmp_path: Path) -> None:
    reports: list[str] = []
    with hub(repository) as source:

        def watch(state: dict[str, Any]) -> None:
            assert state["status"] == "loading"
            reports.append(state.get("loading", ""))
            if share(reports[-1]) >= 10:  # less is only the small files
                source.gate.set()

        flags = ("--model", "owner/name", "--stt", "sphinx", "--tts", "espeak", "--device", "cpu")
        folders: dict[str, Any] = {"HF_ENDPOINT": source.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        with running(tmp_path, *flags, watch=watch, **folders) as served:
            log = served.log
    assert any("name: libraries" in words for words in reports), reports
    assert {share(words) for words in reports} & set(range(10, 91)), reports
    assert "Loading weights: 100%" in log
    for step in ("libraries", "files", "weights"):
        assert log.count(f"name: loading {step}\n") == 1


def share(words: str) -> int:
    """Percent of the model's files that are downloaded; 0 where it is not reported."""
    found = re.search(r"name: files (\d+)%", words)
    return int(found[1]) if found else 0
