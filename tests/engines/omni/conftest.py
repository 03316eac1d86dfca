"""Both families, tiny, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from echosight.engines.omni.load import read_model  # noqa: E402
from echosight.engines.omni.model import Limits  # noqa: E402
from echosight.engines.omni.stage import Stage  # noqa: E402
from tests.engines.omni import tiny  # noqa: E402

WRITERS = {"qwen2_5_omni": tiny.write_qwen2_5, "qwen3_omni_moe": tiny.write_qwen3}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in WRITERS.items()}


@pytest.fixture(scope="session", params=list(WRITERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path], kind: str) -> Any:
    limits = Limits(context=4096, answers=4, frames=60)
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
def stage(model: Any) -> Stage:
    return Stage(model, capacity=4, reply_tokens=256)
