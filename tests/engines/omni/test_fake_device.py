"""On a device other than the CPU, replies are the same; in half precision, there are replies."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.engines.omni.fake_device import generate_replies

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(300)
async def test_every_tensor_is_on_the_device_that_uses_it(folders: dict[str, Path], model_type: str) -> None:
    """In a process of its own, because a registered device stays in torch until the process ends."""
    command = [sys.executable, "-m", "tests.engines.omni.fake_device", str(folders[model_type]), model_type, "float32"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    assert json.loads(output) == generate_replies(folders[model_type], model_type, "float32", moved=False)


def test_half_precision_gives_replies(folders: dict[str, Path], model_type: str) -> None:
    for reply in generate_replies(folders[model_type], model_type, "bfloat16", moved=False):
        assert reply["text"]
        assert len(reply["frames"]) == 30
        assert reply["samples"] > 0
