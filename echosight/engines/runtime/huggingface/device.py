"""The device that a model runs on."""

from __future__ import annotations

from echosight.errors import SetupError


def choose_device(requested: str) -> str:
    """A torch device name; ``auto`` is the GPU where there is one. Raises `SetupError` for a GPU that is not there."""
    import torch

    available = torch.cuda.is_available()
    if requested.startswith("cuda") and not available:
        raise SetupError("There is no CUDA device here: choose --device cpu")
    return requested if requested != "auto" else "cuda" if available else "cpu"
