"""From a Hugging Face id or a folder to an engine; what is missing is said in one sentence, before loading."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echosight.engines import Transcriber
from echosight.engines.loading import download, follow_transformers, tell
from echosight.engines.omni.engine import DEFAULT_REPLY_TOKENS, OmniEngine
from echosight.errors import SetupError

if TYPE_CHECKING:
    from echosight.engines.omni.stage import Stage
    from echosight.engines.omni.state import Limits

MODEL_TYPES = ("qwen2_5_omni", "qwen3_omni_moe")
FILES = ("*.json", "*.safetensors", "*.txt", "spk_dict.pt", "*.jinja")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPARE = 1.1
"""Room wanted over weights and rows: conversations' own caches, graphs, activations."""


def load(
    source: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    capacity: int = 8,
    context: int = 8192,
    transcriber: Transcriber | None = None,
    seed: int | None = None,
) -> OmniEngine:
    """An engine for the model at `source`; its `start` loads it. Raises `SetupError`.

    `device` "auto" takes a GPU where there is one. `dtype` is by default bfloat16 on a GPU and float32 on a CPU.
    `context` is in tokens; `capacity` in conversations, all of which may be answered at once.
    """
    _need_extra(source)
    if _looks_like_path(source):
        check_config(source, read_config(Path(source).expanduser()))

    def build() -> Stage:
        return _build(source, device, dtype, capacity, context)

    name = Path(source).name or source
    return OmniEngine(name, build, capacity=capacity, transcriber=transcriber, seed=seed)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``. Raises `SetupError`."""
    if not folder.is_dir():
        raise SetupError(f"There is no folder {folder}; give --model an existing folder or a Hugging Face id")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{folder} holds no readable config.json, so it is no model folder: {error}") from error
    return config if isinstance(config, dict) else {}


def check_config(source: str, config: dict[str, Any]) -> None:
    """Raises `SetupError` where the model is of another kind."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise SetupError(f"{source} is a model of type {kind!r}, and an omni engine needs {known}")


def weight_bytes(folder: Path, dtype: str) -> int:
    """Memory that the weights take when loaded as `dtype`, by the safetensors headers; 0 where there are none."""
    elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        spans = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        elements += sum(_product(shape) for shape in spans)
    return elements * BYTES[dtype]


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
    return total * BYTES[dtype]


def free_bytes(device: str) -> int:
    """Memory that can be had on the device."""
    if device.startswith("cuda"):
        import torch

        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62


def check_memory(source: str, needed: int, free: int, device: str) -> None:
    """Raises `SetupError` where the weights would not fit."""
    wanted = int(needed * SPARE)
    if wanted > free:
        raise SetupError(
            f"{source} needs about {wanted / 2**30:.1f} GiB on {device} and {free / 2**30:.1f} GiB are free: "
            "choose a smaller model with --model, or another device"
        )


def _need_extra(source: str) -> None:
    for module in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"Omni models need {module}: uv run --extra local model_server.py --model {source}")
    found = importlib.metadata.version("transformers")
    if int(found.partition(".")[0]) < 5:
        raise SetupError(f"Omni models need transformers 5, and {found} is installed: uv sync --extra local")


def _looks_like_path(source: str) -> bool:
    """Hugging Face ids are ``owner/name``; anything that exists, or could not be an id, is a folder."""
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~")) or source.count("/") != 1


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _fetch(source: str) -> Path:
    """The model's folder, downloaded where `source` is an id. Raises `SetupError`."""
    if _looks_like_path(source):
        return Path(source).expanduser()
    from huggingface_hub import hf_hub_download

    try:
        config = json.loads(Path(hf_hub_download(source, "config.json")).read_text("utf-8"))
        check_config(source, config)
        return download(source, FILES)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetupError(f"{source} is no folder here, and it could not be downloaded: {reason}") from error


def _build(source: str, device: str, dtype: str | None, capacity: int, context: int) -> Stage:
    tell("libraries")
    import torch

    from echosight.engines.omni.stage import Stage
    from echosight.engines.omni.state import Limits

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise SetupError("There is no CUDA device here: choose --device cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    folder = _fetch(source)
    config = read_config(folder)
    check_config(source, config)
    limits = Limits(context=context, answers=capacity)
    # Twice: conversations keep caches of their own beside the rows.
    rows = 2 * row_bytes(config, limits, dtype) if device.startswith("cuda") else 0
    check_memory(source, weight_bytes(folder, dtype) + rows, free_bytes(device), device)
    tell("weights")
    follow_transformers()
    model = read_model(folder, config["model_type"], device, dtype, limits)
    stage = Stage(model, capacity, min(DEFAULT_REPLY_TOKENS, context // 4))
    tell("steps")
    stage.warm_up()
    return stage


def read_model(folder: Path, kind: str, device: str, dtype: str, limits: Limits) -> Any:
    """The model in a folder, on its device. The processors are read one by one: `AutoProcessor` wants torchvision."""
    import torch
    import transformers as installed

    from echosight.engines.omni.assemble import assemble

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
