"""From a Hugging Face id or a folder to an engine; anything missing is reported in one sentence, before loading."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echosight.engines import STT
from echosight.engines.omni.engine import DEFAULT_REPLY_TOKENS, OmniEngine
from echosight.engines.runtime.huggingface.device import choose_device
from echosight.engines.runtime.huggingface.memory import DTYPE_BYTES, check_memory, free_bytes, weight_bytes
from echosight.engines.runtime.huggingface.source import fetch, fetch_config, first_line, is_local, read_config
from echosight.engines.runtime.progress import hook_transformers_progress, report
from echosight.errors import SetupError

if TYPE_CHECKING:
    from echosight.engines.omni.model_runner import ModelRunner
    from echosight.engines.omni.models.base import OmniModel
    from echosight.engines.omni.models.state import Limits

CLASSES = {
    "qwen2_5_omni": "Qwen2_5OmniForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
}
"""``model_type`` of the configuration -> class of transformers."""

FILES = ("*.json", "*.safetensors", "*.txt", "spk_dict.pt", "*.jinja")
"""Glob patterns of the files that a checkpoint needs."""


def load(
    source: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    capacity: int = 8,
    context: int = 8192,
    stt: STT | None = None,
    seed: int | None = None,
) -> OmniEngine:
    """An engine for the model at `source`, a Hugging Face id or a folder; its `start` loads the model.

    `device` "auto" means a GPU where there is one. `dtype` None means bfloat16 on a GPU and float32 on a CPU. `context`
    is in tokens; `capacity` in conversations, all of which may generate at once. Raises `SetupError`.
    """
    _require_packages(source)
    if is_local(source):
        check_config(source, fetch_config(source))

    def build() -> ModelRunner:
        return _build(source, device, dtype, capacity, context)

    return OmniEngine(Path(source).name or source, build, capacity=capacity, stt=stt, seed=seed)


def check_config(source: str, config: dict[str, Any]) -> None:
    """Raises `SetupError` where the model is of another type than those of `CLASSES`."""
    model_type = config.get("model_type")
    if model_type not in CLASSES:
        known = " or ".join(CLASSES)
        raise SetupError(f"{source} is a model of type {model_type!r}, and an omni engine needs {known}")


def kv_cache_bytes(config: dict[str, Any], limits: Limits, dtype: str) -> int:
    """Bytes of both batched KV caches at their full size, which a GPU holds from the start."""
    thinker, talker = config["thinker_config"]["text_config"], config.get("talker_config", {})
    talker = talker.get("text_config", talker)
    total = 0
    for layout, length in ((thinker, limits.context_tokens), (talker, limits.context_tokens + limits.speech_frames)):
        heads = layout.get("num_attention_heads", 0)
        width = layout.get("head_dim") or layout.get("hidden_size", 0) // max(1, heads)
        per_token = 2 * layout.get("num_hidden_layers", 0) * layout.get("num_key_value_heads", heads) * width
        total += limits.batch_size * length * per_token
    return total * DTYPE_BYTES[dtype]


def _require_packages(source: str) -> None:
    for module in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"Omni models need {module}: uv run --extra local model_server.py --model {source}")
    version = importlib.metadata.version("transformers")
    if int(version.partition(".")[0]) < 5:
        raise SetupError(f"Omni models need transformers 5, and {version} is installed: uv sync --extra local")


def _build(source: str, device: str, dtype: str | None, capacity: int, context: int) -> ModelRunner:
    """Runs in the model's thread, because importing torch takes seconds."""
    report("libraries")
    from echosight.engines.omni.model_runner import ModelRunner
    from echosight.engines.omni.models.state import Limits

    device = choose_device(device)
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    check_config(source, fetch_config(source))
    folder = fetch(source, FILES)
    config = read_config(folder)
    limits = Limits(context_tokens=context, batch_size=capacity)
    # Twice, because each conversation keeps a cache of its own besides its row.
    kv_bytes = 2 * kv_cache_bytes(config, limits, dtype) if device.startswith("cuda") else 0
    check_memory(source, weight_bytes(folder, dtype) + kv_bytes, free_bytes(device), device)
    report("weights")
    hook_transformers_progress()
    model = load_model(folder, config["model_type"], device, dtype, limits)
    runner = ModelRunner(model, capacity, min(DEFAULT_REPLY_TOKENS, context // 4))
    report("steps")
    runner.warm_up()
    return runner


def load_model(folder: Path, model_type: str, device: str, dtype: str, limits: Limits) -> OmniModel:
    """The model in a folder, on its device; `dtype` is a name of torch. Raises `SetupError` for a damaged folder.

    Reads the processors one by one, because `AutoProcessor` needs torchvision.
    """
    import torch
    import transformers as installed

    from echosight.engines.omni.models.families import build_model

    transformers: Any = installed
    cls = getattr(transformers, CLASSES[model_type])
    try:
        model = cls.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", device_map=device, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        images = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{folder} is incomplete or damaged: {first_line(error)}") from error
    return build_model(model_type, model.eval(), tokenizer, extractor, images, limits)
