"""On a device that is not the CPU the models say the same; and in half precision they say something."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.engines.omni.elsewhere import answers

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(300)
async def test_every_tensor_is_where_it_is_needed(folders: dict[str, Path], kind: str) -> None:
    """In a process of its own: a made-up device is known to all of torch, and for good."""
    command = [sys.executable, "-m", "tests.engines.omni.elsewhere", str(folders[kind]), kind, "float32"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    told, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    assert json.loads(told) == answers(folders[kind], kind, "float32", moved=False)


def test_in_half_precision_there_is_an_answer(folders: dict[str, Path], kind: str) -> None:
    for said in answers(folders[kind], kind, "bfloat16", moved=False):
        assert said["text"]
        assert len(said["frames"]) == 30
        assert said["samples"] > 0
