"""Which class drives which model."""

from __future__ import annotations

from typing import Any

from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.qwen2_5 import Qwen2_5Omni
from echosight.engines.omni.qwen3 import Qwen3Omni
from echosight.engines.omni.state import Limits

FAMILIES: dict[str, type[OmniModel]] = {"qwen2_5_omni": Qwen2_5Omni, "qwen3_omni_moe": Qwen3Omni}


def assemble(
    kind: str, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, *, graphs: bool = True
) -> OmniModel:
    """Put a loaded model and its processors together. `graphs` False: eager steps on a GPU too."""
    return FAMILIES[kind](model, tokenizer, extractor, images, limits, Recorder(model.thinker.device, enabled=graphs))
