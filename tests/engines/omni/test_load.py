"""Loading: anything missing is reported in one sentence, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from echosight.engines.omni import load as loading
from echosight.engines.omni.load import kv_cache_bytes, load
from echosight.engines.omni.models.state import Limits
from echosight.engines.runtime.huggingface.memory import check_memory, free_bytes, weight_bytes
from echosight.errors import SetupError


def test_a_model_that_cannot_be_loaded_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match=r"no folder .*nowhere"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match=r"no readable config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(SetupError, match=r"'llama'.*needs qwen2_5_omni"):
        load(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="uv run --extra local"):
        load("Qwen/Qwen2.5-Omni-7B")


async def test_a_model_that_does_not_fit_is_not_loaded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["qwen2_5_omni"]
    assert weight_bytes(folder, "float32") == 2 * weight_bytes(folder, "bfloat16") > 1_500_000
    assert free_bytes("cpu") > 2**20
    with pytest.raises(SetupError, match=r"needs about 110\.0 GiB on cuda and 80\.0 GiB are free"):
        check_memory("big", 100 * 2**30, 80 * 2**30, "cuda")
    config = json.loads((folder / "config.json").read_text())
    # Two layers and two heads of 16 in the thinker, of 12 in the talker, keys and values.
    assert kv_cache_bytes(
        config, Limits(context_tokens=100, batch_size=3, speech_frames=50), "bfloat16"
    ) == 3 * 2 * 2 * 2 * 2 * (1600 + 1800)
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1000)
    engine = load(str(folder), device="cpu")
    with pytest.raises(SetupError, match="choose a smaller model"):
        await engine.start()
    await engine.close()


async def test_a_damaged_folder_is_reported(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["qwen2_5_omni"] / name).read_bytes())
    engine = load(str(tmp_path), device="cpu")
    with pytest.raises(SetupError, match="incomplete or damaged"):
        await engine.start()
    await engine.close()
    assert "weights" in str(engine.loading)
