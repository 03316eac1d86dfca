"""From a Hugging Face id or a folder to an engine; what is missing is said in one sentence, before loading."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echosight.engines import STT
from echosight.engines.omni.engine import DEFAULT_REPLY_TOKENS, OmniEngine
from echosight.engines.runtime.huggingface.device import choose_device
from echosight.engines.runtime.huggingface.memory import DTYPE_BYTES, check_memory, free_bytes, weight_bytes
from echosight.engines.runtime.huggingface.source import fetch, fetch_config, is_local, read_config
from echosight.engines.runtime.progress import hook_transformers_progress, report
from echosight.errors import SetupError

if TYPE_CHECKING:
    from echosight.engines.omni.model_runner import Stage
    from echosight.engines.omni.state import Limits

MODEL_TYPES = ("qwen2_5_omni", "qwen3_omni_moe")
FILES = ("*.json", "*.safetensors", "*.txt", "spk_dict.pt", "*.jinja")


def load(
    source: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    capacity: int = 8,
    context: int = 8192,
    transcriber: STT | None = None,
    seed: int | None = None,
) -> OmniEngine:
    """An engine for the model at `source`; its `start` loads it. Raises `SetupError`.

    `device` "auto" takes a GPU where there is one. `dtype` is by default bfloat16 on a GPU and float32 on a CPU.
    `context` is in tokens; `capacity` in conversations, all of which may be answered at once.
    """
    _need_extra(source)
    if is_local(source):
        check_config(source, fetch_config(source))

    def build() -> Stage:
        return _build(source, device, dtype, capacity, context)

    name = Path(source).name or source
    return OmniEngine(name, build, capacity=capacity, transcriber=transcriber, seed=seed)


def check_config(source: str, config: dict[str, Any]) -> None:
    """Raises `SetupError` where the model is of another kind."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise SetupError(f"{source} is a model of type {kind!r}, and an omni engine needs {known}")


def row_bytes(config: dict[str, Any], limits: Limits, dtype: str) -> int:
    """Memory of the keys and values of all answers at their full length, which a GPU holds from the start."""
    thinker, talker = config["thinker_config"]["text_config"], config.get("talker_config", {})
    talker = talker.get("text_config", talker)
    total = 0
    for layout, length in ((thinker, limits.context), (talker, limits.context + limits.frames)):
        heads = layout.get("num_attention_heads", 0)
        width = layout.get("head_dim") or layout.get("hidden_size", 0) // max(1, heads)
        token = 2 * layout.get("num_hidden_layers", 0) * layout.get("num_key_value_heads", heads) * width
        total += limits.answers * length * token
    return total * DTYPE_BYTES[dtype]


def _need_extra(source: str) -> None:
    for module in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"Omni models need {module}: uv run --extra local model_server.py --model {source}")
    found = importlib.metadata.version("transformers")
    if int(found.partition(".")[0]) < 5:
        raise SetupError(f"Omni models need transformers 5, and {found} is installed: uv sync --extra local")


def _build(source: str, device: str, dtype: str | None, capacity: int, context: int) -> Stage:
    report("libraries")
    from echosight.engines.omni.model_runner import Stage
    from echosight.engines.omni.state import Limits

    device = choose_device(device)
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    check_config(source, fetch_config(source))
    folder = fetch(source, FILES)
    config = read_config(folder)
    limits = Limits(context=context, answers=capacity)
    # Twice: conversations keep caches of their own beside the rows.
    rows = 2 * row_bytes(config, limits, dtype) if device.startswith("cuda") else 0
    check_memory(source, weight_bytes(folder, dtype) + rows, free_bytes(device), device)
    report("weights")
    hook_transformers_progress()
    model = read_model(folder, config["model_type"], device, dtype, limits)
    stage = Stage(model, capacity, min(DEFAULT_REPLY_TOKENS, context // 4))
    report("steps")
    stage.warm_up()
    return stage


def read_model(folder: Path, kind: str, device: str, dtype: str, limits: Limits) -> Any:
    """The model in a folder, on its device. The processors are read one by one: `AutoProcessor` wants torchvision."""
    import torch
    import transformers as installed

    from echosight.engines.omni.families import assemble

    classes = {
        "qwen2_5_omni": "Qwen2_5OmniForConditionalGeneration",
        "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
    }
    transformers: Any = installed
    found = getattr(transformers, classes[kind])
    try:
        model = found.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", device_map=device, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        images = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{folder} is incomplete or damaged: {str(error).splitlines()[0]}") from error
    return assemble(kind, model.eval(), tokenizer, extractor, images, limits)
