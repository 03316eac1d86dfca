"""Loads a Hugging Face checkpoint: the model, its tokenizer, and the processor of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echosight.engines.runtime.huggingface.memory import check_memory, free_bytes, weight_bytes
from echosight.engines.runtime.huggingface.source import first_line
from echosight.engines.runtime.progress import hook_transformers_progress, report
from echosight.engines.runtime.sampling import SamplingParams
from echosight.errors import SetupError

FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken")
"""Glob patterns of the files that a checkpoint needs."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`processor` is None for a model without vision. `stop_tokens` end a reply."""

    model: Any
    tokenizer: Any
    processor: Any
    stop_tokens: frozenset[int]
    sampling_params: SamplingParams
    """The makers' recommendation, from ``generation_config.json``."""


def read_checkpoint(source: str, folder: Path, device: str) -> Checkpoint:
    """Load the model of `folder`: in the dtype of its weights on a GPU, in float32 on a CPU.

    `source` is the user's name for the model. Raises `SetupError` where the folder is incomplete, the model is of
    another kind, or its weights exceed the free memory.
    """
    import torch
    import transformers as installed

    transformers: Any = installed
    report("weights")
    hook_transformers_progress()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        has_vision = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if not has_vision and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise SetupError(f"{source} is a model of type {config.model_type!r}, which does not chat")
        on_gpu = device != "cpu"
        needed = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        check_memory(source, needed if on_gpu else weight_bytes(folder, "float32"), free_bytes(device), device)
        auto = transformers.AutoModelForImageTextToText if has_vision else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(
            folder,
            dtype="auto" if on_gpu else torch.float32,
            device_map="auto" if device == "cuda" else device,
            local_files_only=True,
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = read_processor(folder, config.model_type, tokenizer) if has_vision else None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SetupError(f"{source} could not be loaded: {first_line(error)}") from error
    if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise SetupError(f"{source} has no chat template, so it cannot chat: give --model one that ends in -Instruct")
    stop_tokens = _stop_tokens(model, tokenizer)
    return Checkpoint(
        model, tokenizer, processor, stop_tokens, SamplingParams.from_generation_config(model.generation_config)
    )


def read_processor(folder: Path, model_type: str, tokenizer: Any) -> Any:
    """The processor. Where torchvision is not installed, one without its video part, which needs torchvision."""
    import transformers as installed

    transformers: Any = installed
    try:
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, ValueError):
        cls = processor_class(model_type)
        parts = {"tokenizer": tokenizer}
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return cls(**{name: parts.get(name) for name in cls.get_attributes()})


def processor_class(model_type: str) -> Any:
    """The model type's processor class, changed to accept None for a part.

    Raises ValueError for a model type without a processor.
    """
    import transformers
    from transformers.models.auto import processing_auto

    name = dict(vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]).get(model_type)
    if name is None:
        raise ValueError(f"models of type {model_type} have no processor")
    cls: Any = getattr(transformers, name)

    def check(processor: Any, name: str, part: Any) -> Any:
        return None if part is None else cls.check_argument_for_proper_class(processor, name, part)

    return type(name, (cls,), {"check_argument_for_proper_class": check})


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    tokens = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*tokens, tokenizer.eos_token_id) if token is not None)
