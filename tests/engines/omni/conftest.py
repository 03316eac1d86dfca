"""Both families, tiny, loaded once. Without torch (the extra `local`) there is nothing to test here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]

KINDS = ("qwen2_5_omni", "qwen3_omni_moe")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    from tests.engines.omni import tiny

    write = {"qwen2_5_omni": tiny.write_qwen2_5, "qwen3_omni_moe": tiny.write_qwen3}
    return {kind: write[kind](tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path], kind: str) -> Any:
    from echosight.engines.omni.load import read_model
    from echosight.engines.omni.state import Limits

    limits = Limits(context=4096, answers=4, frames=48)
    return read_model(folders[kind], kind, "cpu", "float32", limits)


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """The model, which never ends by itself: random weights end when they like, and tests want their lengths."""
    kept = loaded.text_ends, loaded.codec_ends
    loaded.text_ends = loaded.codec_ends = frozenset()
    yield loaded
    loaded.text_ends, loaded.codec_ends = kept
    assert not len(loaded.thinking) and not len(loaded.talking), "an answer kept its rows"


@pytest.fixture
def stage(model: Any) -> Any:
    from echosight.engines.omni.model_runner import Stage

    return Stage(model, capacity=4, reply_tokens=256)
