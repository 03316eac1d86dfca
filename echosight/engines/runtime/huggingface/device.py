"""The device that a model runs on."""

from __future__ import annotations

from echosight.errors import SetupError


def choose_device(requested: str) -> str:
    """A torch device name. ``auto`` means ``cuda`` where a GPU is available, else ``cpu``.

    Raises `SetupError` where a GPU is requested and none is available.
    """
    import torch

    available = torch.cuda.is_available()
    if requested.startswith("cuda") and not available:
        raise SetupError(f"--device {requested} needs a CUDA device and torch finds none: choose --device cpu")
    return requested if requested != "auto" else "cuda" if available else "cpu"
