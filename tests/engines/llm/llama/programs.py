"""llama.cpp for tests: a stand-in, and the real server on a random model where ECHOSIGHT_LLAMA_PYTHON names its Python.

It compiles for minutes: `uv venv DIR && uv pip install --python DIR -r tests/engines/llm/llama/requirements.txt`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
KINDS = ("stand-in", "real")


def stand_in(folder: Path) -> tuple[str, str]:
    """The paths of a program with the interface of llama-server, and of a file that it accepts as a model."""
    model, program = folder / "tiny.gguf", folder / "llama-server"
    model.write_bytes(b"GGUF")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FOLDER / "stand_in.py"}" "$@"\n')
    program.chmod(0o755)
    return str(program), str(model)


def real(folder: Path) -> tuple[str, str]:
    """The paths of a Python that has `llama_cpp.server`, and of a model of random weights. Skips without."""
    python = os.environ.get("ECHOSIGHT_LLAMA_PYTHON")
    if not python:
        pytest.skip("ECHOSIGHT_LLAMA_PYTHON names no Python that has llama_cpp.server")
    model = str(folder / "tiny.gguf")
    subprocess.run([python, str(FOLDER / "tiny_gguf.py"), model], check=True, timeout=60)
    return python, model


def llama(kind: str, folder: Path) -> tuple[str, str]:
    """Values for LLAMA_EXE_PATH and --model."""
    return real(folder) if kind == "real" else stand_in(folder)
