"""Choosing the version and the number of processes, and what the process may import."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from echosight.engines.minicpmo import engine as minicpmo
from echosight.engines.minicpmo.engine import MODULE, detect_version, load
from echosight.errors import SetupError

ROOT = Path(__file__).resolve().parents[3]


async def test_the_process_needs_no_package_of_the_servers_environment() -> None:
    """It runs where only the model's requirements are installed; numpy and Pillow are among them."""
    modules = f"{MODULE}, echosight.engines.runtime.huggingface.source"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {modules}"
    pipe = asyncio.subprocess.PIPE
    python = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", program, stderr=pipe)
    _, errors = await python.communicate()
    assert python.returncode == 0, errors.decode()


def test_the_version_comes_from_the_config_or_the_name(tmp_path: Path) -> None:
    assert detect_version("openbmb/MiniCPM-o-2_6") == "2.6"
    assert detect_version("openbmb/MiniCPM-o-4_5-awq") == "4.5"
    (tmp_path / "config.json").write_text('{"version": "4.5"}')
    assert detect_version(str(tmp_path)) == "4.5"
    (tmp_path / "config.json").write_text('{"version": 2.6}')
    assert detect_version(str(tmp_path)) == "2.6"


def test_a_missing_requirement_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="pip install uv"):
        load("openbmb/MiniCPM-o-2_6")
    uv = tmp_path / "uv"
    uv.touch(mode=0o755)
    with pytest.raises(SetupError, match="CUDA GPU with 19 GB"):
        load("openbmb/MiniCPM-o-2_6")
    monkeypatch.setattr(minicpmo, "free_gpu_mib", lambda: 50_000)
    engine = load("openbmb/MiniCPM-o-4_5")
    assert engine.capacity == 2
    assert "transformers==4.51.0" in engine._caches[0].process._command
