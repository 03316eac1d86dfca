"""Both families, tiny, loaded once. Without torch (the extra `local`) these tests are left out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]

MODEL_TYPES = ("qwen2_5_omni", "qwen3_omni_moe")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    from tests.engines.omni import tiny

    write = {"qwen2_5_omni": tiny.write_qwen2_5, "qwen3_omni_moe": tiny.write_qwen3}
    return {model_type: write[model_type](tmp_path_factory.mktemp(model_type)) for model_type in MODEL_TYPES}


@pytest.fixture(scope="session", params=MODEL_TYPES)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path], model_type: str) -> Any:
    from echosight.engines.omni.load import load_model
    from echosight.engines.omni.models.state import Limits

    limits = Limits(context_tokens=4096, batch_size=4, speech_frames=48)
    return load_model(folders[model_type], model_type, "cpu", "float32", limits)


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """The model without stop tokens: random weights would end replies at any length."""
    stop_tokens = loaded.text_stop_tokens, loaded.codec_stop_tokens
    loaded.text_stop_tokens = loaded.codec_stop_tokens = frozenset()
    yield loaded
    loaded.text_stop_tokens, loaded.codec_stop_tokens = stop_tokens
    assert not len(loaded.thinker_batch) and not len(loaded.talker_batch), "a reply kept its rows"


@pytest.fixture
def runner(model: Any) -> Any:
    from echosight.engines.omni.model_runner import ModelRunner

    return ModelRunner(model, capacity=4, reply_tokens=256)
