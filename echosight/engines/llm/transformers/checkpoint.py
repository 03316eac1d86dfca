"""A Hugging Face checkpoint, read: the model, its tokenizer, and the processor of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echosight.engines.runtime.huggingface.memory import check_memory, free_bytes, weight_bytes
from echosight.engines.runtime.huggingface.source import first_line
from echosight.engines.runtime.progress import hook_transformers_progress, report
from echosight.engines.runtime.sampling import Taste
from echosight.errors import SetupError

FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`processor` is None for a model that sees nothing; `ends` are the tokens that end a reply."""

    model: Any
    tokenizer: Any
    processor: Any
    ends: frozenset[int]
    taste: Taste


def read_checkpoint(source: str, folder: Path, device: str) -> Checkpoint:
    """The model on its device: as its weights are on a GPU, in float32 on a CPU. Raises `SetupError`."""
    import torch
    import transformers as installed

    transformers: Any = installed
    report("weights")
    hook_transformers_progress()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if not sees and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise SetupError(f"{source} is a model of type {config.model_type!r}, which does not chat")
        on_gpu = device != "cpu"
        needed = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        check_memory(source, needed if on_gpu else weight_bytes(folder, "float32"), free_bytes(device), device)
        auto = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(
            folder,
            dtype="auto" if on_gpu else torch.float32,
            device_map="auto" if device == "cuda" else device,
            local_files_only=True,
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = read_processor(folder, config.model_type, tokenizer) if sees else None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SetupError(f"{source} could not be loaded: {first_line(error)}") from error
    if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise SetupError(f"{source} has no chat template, so it cannot chat: give --model one that ends in -Instruct")
    return Checkpoint(model, tokenizer, processor, _ends(model, tokenizer), _taste(model.generation_config))


def read_processor(folder: Path, model_type: str, tokenizer: Any) -> Any:
    """The processor, without the part for videos where torchvision, which that needs, is not installed."""
    import transformers as installed

    transformers: Any = installed
    try:
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, ValueError):
        kind = type_of_processor(model_type)
        parts = {"tokenizer": tokenizer}
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return kind(**{name: parts.get(name) for name in kind.get_attributes()})


def type_of_processor(model_type: str) -> Any:
    """The processor's class, which then takes None for a part. Raises ValueError for a model that has none."""
    import transformers
    from transformers.models.auto import processing_auto

    name = dict(vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]).get(model_type)
    if name is None:
        raise ValueError(f"models of type {model_type} have no processor")
    kind: Any = getattr(transformers, name)

    def check(processor: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(processor, name, part)

    return type(name, (kind,), {"check_argument_for_proper_class": check})


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)


def _taste(told: Any) -> Taste:
    """As the model's makers advise."""
    if not told.do_sample:
        return Taste(0.0, repetition_penalty=told.repetition_penalty or 1.0)
    return Taste(
        1.0 if told.temperature is None else told.temperature,
        1.0 if told.top_p is None else told.top_p,
        told.top_k or 0,
        told.repetition_penalty or 1.0,
    )
