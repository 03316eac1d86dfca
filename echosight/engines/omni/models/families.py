"""Which class runs which model type."""

from __future__ import annotations

from typing import Any

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.qwen2_5 import Qwen2_5Omni
from echosight.engines.omni.models.qwen3 import Qwen3Omni
from echosight.engines.omni.models.state import Limits

FAMILIES: dict[str, type[OmniModel]] = {"qwen2_5_omni": Qwen2_5Omni, "qwen3_omni_moe": Qwen3Omni}


def build_model(
    model_type: str, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, *, graphs: bool = True
) -> OmniModel:
    """Wrap a loaded transformers model and its processors.

    `extractor` is the feature extractor of audio, `images` the image processor. `graphs` False runs eager steps on a
    GPU, too. Raises KeyError for another `model_type` than those of `FAMILIES`.
    """
    recorder = GraphRecorder(model.thinker.device, enabled=graphs)
    return FAMILIES[model_type](model, tokenizer, extractor, images, limits, recorder)
