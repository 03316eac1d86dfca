"""Tiny random checkpoints, loaded once. Without torch (the extra `local`), the tests that need them are left out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HAS_TORCH = bool(find_spec("torch") and find_spec("transformers"))
KINDS = ("llama", "gpt_oss", "qwen_vl")

collect_ignore = [] if HAS_TORCH else ["test_chat.py", "test_generator.py", "test_prompt.py"]


@pytest.fixture(scope="package", autouse=HAS_TORCH)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind."""
    from tests.engines import tiny_local

    return {kind: getattr(tiny_local, f"write_{kind}")(tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="package")
def checkpoints(folders: dict[str, Path]) -> dict[str, Any]:
    """The checkpoints, loaded."""
    from echosight.engines.llm.transformers.checkpoint import read_checkpoint

    return {kind: read_checkpoint(kind, folder, "cpu") for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(checkpoints: dict[str, Any], kind: str) -> Any:
    return checkpoints[kind]


@pytest.fixture
def llama(checkpoints: dict[str, Any]) -> Any:
    return checkpoints["llama"]
