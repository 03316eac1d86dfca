"""Whether a model fits: the size of its weights, and the free memory of the device."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from echosight.errors import SetupError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HEADROOM = 1.1
"""Factor on the weights: activations, KV caches of conversations and CUDA graphs need memory, too."""


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes of the weights when loaded as `dtype`, a key of `DTYPE_BYTES`; 0 where there are no safetensors files.

    Reads only the headers (https://huggingface.co/docs/safetensors, "Format").
    """
    elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        elements += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return elements * DTYPE_BYTES[dtype]


def free_bytes(device: str) -> int:
    """Bytes that can be allocated on the device: free GPU memory, or available memory of the machine."""
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
    """Raises `SetupError` where `needed` bytes times `HEADROOM` exceed `free` bytes."""
    required = int(needed * HEADROOM)
    if required > free:
        raise SetupError(
            f"{source} needs about {required / 2**30:.1f} GiB on {device} and {free / 2**30:.1f} GiB are free: "
            "choose a smaller model with --model, or another device with --device"
        )
