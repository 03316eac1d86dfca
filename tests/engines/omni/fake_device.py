"""A torch device that computes on the CPU, but refuses to mix its tensors with those of the CPU.

Code that works on it has every tensor on the right device, so it works on a CUDA device, too, as far as devices are
concerned. `python -m tests.engines.omni.fake_device FOLDER MODEL_TYPE DTYPE` generates two replies together on this
device and prints them; it runs in a process of its own, because a registered device stays in torch until the process
ends.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers as installed
from torch.utils import _pytree as trees
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from echosight.engines.omni.load import load_model
from echosight.engines.omni.model_runner import ModelRunner
from echosight.engines.omni.models.families import build_model
from echosight.engines.omni.models.state import Limits
from tests.engines.omni.speech import FIRST, SECOND, run_together, snapshot, spoken_request

NAME = "fake"
MAY_MIX = {"_to_copy", "to", "copy_", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Copies between devices, and indexing, for which CUDA accepts indices on the CPU."""

Tensor: Any = torch.Tensor
Mode: Any = TorchDispatchMode
transformers: Any = installed


class FakeDeviceTensor(Tensor):  # type: ignore[misc]
    """A tensor on the fake device; `inner` holds its numbers, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FakeDeviceTensor:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        tensor: FakeDeviceTensor = Tensor._make_wrapper_subclass(cls, inner.size(), device=f"{NAME}:0", **shape)
        tensor.inner = inner
        return tensor

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


class FakeDeviceMode(Mode):  # type: ignore[misc]
    """While it is entered, tensors created for the fake device are on it."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU. Raises RuntimeError where it takes tensors of both devices."""
    name = operation.overloadpacket.__name__
    leaves, shape = trees.tree_flatten((args, kwargs))
    on_fake = [leaf for leaf in leaves if isinstance(leaf, FakeDeviceTensor)]
    on_cpu = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeDeviceTensor)]
    if on_fake and name not in MAY_MIX and any(leaf.dim() for leaf in on_cpu):
        raise RuntimeError(
            f"{name} takes tensors of two devices: {[tuple(leaf.shape) for leaf in on_cpu]} are on the CPU"
        )
    args, kwargs = trees.tree_unflatten([_to_cpu(leaf) for leaf in leaves], shape)
    if name == "histc":  # counts integers on CUDA, and cannot on a CPU
        args = (args[0].float(), *args[1:])
    result = operation(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})
    if not _is_on_fake(name, leaves, on_fake):
        return result
    known = {id(leaf.inner): leaf for leaf in on_fake}
    return trees.tree_map(lambda leaf: _wrap(leaf, known) if isinstance(leaf, torch.Tensor) else leaf, result)


def _wrap(tensor: torch.Tensor, known: dict[int, FakeDeviceTensor]) -> FakeDeviceTensor:
    """An in-place operation returns its input, so that one keeps its wrapper."""
    return known[id(tensor)] if id(tensor) in known else FakeDeviceTensor(tensor)


def _is_on_fake(name: str, leaves: list[Any], on_fake: list[FakeDeviceTensor]) -> bool:
    """Whether the operation's result is on the fake device."""
    if name in ("cpu", "copy_"):
        return name == "copy_" and isinstance(leaves[0], FakeDeviceTensor)
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    return devices[0].type == NAME if devices else bool(on_fake)


def _to_cpu(leaf: Any) -> Any:
    if isinstance(leaf, FakeDeviceTensor):
        return leaf.inner
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def register() -> Any:
    """Register the device with torch: with its device guards, and for operations that C++ calls without Python."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]

    def empty(size: Any, stride: Any = None, dtype: Any = None, **_: Any) -> FakeDeviceTensor:
        tensor = torch.empty(size, dtype=dtype) if stride is None else torch.empty_strided(size, stride, dtype=dtype)
        return FakeDeviceTensor(tensor)

    def copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
        _to_cpu(target).copy_(_to_cpu(source))
        return target

    library.impl("empty_strided", empty, "PrivateUse1")
    library.impl("empty.memory_format", lambda size, **kw: empty(size, dtype=kw.get("dtype")), "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", lambda tensor: tensor.inner.item(), "PrivateUse1")
    return library


def move(module: torch.nn.Module) -> None:
    """Move weights and buffers to the fake device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(FakeDeviceTensor(weight.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FakeDeviceTensor(buffer)


def generate_replies(folder: Path, model_type: str, dtype: str, *, moved: bool) -> list[dict[str, Any]]:
    """The replies to two conversations, generated together, as JSON values."""
    limits = Limits(context_tokens=512, batch_size=2, speech_frames=30)
    model = load_model(folder, model_type, "cpu", dtype, limits)
    with torch.inference_mode(), FakeDeviceMode() if moved else nullcontext():
        if moved:
            move(model.model)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
            images = transformers.AutoImageProcessor.from_pretrained(folder)
            model = build_model(model_type, model.model, tokenizer, extractor, images, limits)
        model.text_stop_tokens = model.codec_stop_tokens = frozenset()
        runner = ModelRunner(model, 2, 128)
        runner.warm_up()
        snapshots = [snapshot(FIRST, conversation_id="a"), snapshot(SECOND, conversation_id="b")]
        replies = run_together(runner, *((seen.id, runner.start(seen, spoken_request(model, 8))) for seen in snapshots))
    return [{"text": r.text, "frames": [list(f) for f in r.frames], "samples": len(r.pcm) // 2} for r in replies]


if __name__ == "__main__":
    torch.set_num_threads(1)
    library = register()
    print(json.dumps(generate_replies(Path(sys.argv[1]), sys.argv[2], sys.argv[3], moved=True)))
