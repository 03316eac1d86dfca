"""A device that is not the CPU, without a GPU: computes on the CPU, but refuses to mix its tensors with the CPU's.

What works here works on a CUDA device, as far as devices go: every tensor is made where it is needed, and what Python
reads was fetched. `python -m tests.engines.omni.elsewhere FOLDER KIND DTYPE` answers two conversations at once on such
a device and prints what they said: in a process of its own, because torch keeps a backend that is made up for good.
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

from echosight.engines.omni.families import assemble
from echosight.engines.omni.load import read_model
from echosight.engines.omni.model_runner import Stage
from echosight.engines.omni.state import Limits
from tests.engines.omni.speech import FIRST, SECOND, run, view, wish

NAME = "elsewhere"
MAY_MIX = {"_to_copy", "to", "copy_", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that move, and indexing, for which CUDA takes indices from the CPU."""

Tensor: Any = torch.Tensor
Mode: Any = TorchDispatchMode
transformers: Any = installed


class Elsewhere(Tensor):  # type: ignore[misc]
    """A tensor on the made-up device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made: Elsewhere = Tensor._make_wrapper_subclass(cls, inner.size(), device=f"{NAME}:0", **shape)
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


class Device(Mode):  # type: ignore[misc]
    """Where it is entered, what is made for the device is made on it."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU. Raises RuntimeError where it takes tensors of both devices."""
    name = operation.overloadpacket.__name__
    leaves, shape = trees.tree_flatten((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere)]
    if there and name not in MAY_MIX and any(leaf.dim() for leaf in here):
        raise RuntimeError(f"{name} takes tensors of two devices: {[tuple(leaf.shape) for leaf in here]} are here")
    args, kwargs = trees.tree_unflatten([_on_cpu(leaf) for leaf in leaves], shape)
    if name == "histc":  # counts integers on CUDA, and cannot on a CPU
        args = (args[0].float(), *args[1:])
    result = operation(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})
    if not _stays(name, leaves, there):
        return result
    known = {id(leaf.inner): leaf for leaf in there}
    return trees.tree_map(lambda made: _moved(made, known) if isinstance(made, torch.Tensor) else made, result)


def _moved(made: torch.Tensor, known: dict[int, Elsewhere]) -> Elsewhere:
    """What an operation in place returns is the tensor that it was given."""
    return known[id(made)] if id(made) in known else Elsewhere(made)


def _stays(name: str, leaves: list[Any], there: list[Elsewhere]) -> bool:
    """Whether the result is on the device."""
    if name in ("cpu", "copy_"):
        return name == "copy_" and isinstance(leaves[0], Elsewhere)
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    return devices[0].type == NAME if devices else bool(there)


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.inner
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def register() -> Any:
    """Make the device known to torch: to its guards, and to what it does in C++ without asking Python."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]

    def empty(size: Any, stride: Any = None, dtype: Any = None, **_: Any) -> Elsewhere:
        made = torch.empty(size, dtype=dtype) if stride is None else torch.empty_strided(size, stride, dtype=dtype)
        return Elsewhere(made)

    def copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
        _on_cpu(target).copy_(_on_cpu(source))
        return target

    library.impl("empty_strided", empty, "PrivateUse1")
    library.impl("empty.memory_format", lambda size, **kw: empty(size, dtype=kw.get("dtype")), "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", lambda held: held.inner.item(), "PrivateUse1")
    return library


def move(module: torch.nn.Module) -> None:
    """Weights and buffers to the device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(Elsewhere(weight.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)


def answers(folder: Path, kind: str, dtype: str, *, moved: bool) -> list[dict[str, Any]]:
    """What two conversations are answered, together."""
    limits = Limits(context=512, answers=2, frames=30)
    model = read_model(folder, kind, "cpu", dtype, limits)
    with torch.inference_mode(), Device() if moved else nullcontext():
        if moved:
            move(model.model)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
            images = transformers.AutoImageProcessor.from_pretrained(folder)
            model = assemble(kind, model.model, tokenizer, extractor, images, limits)
        model.text_ends = model.codec_ends = frozenset()
        stage = Stage(model, 2, 128)
        stage.warm_up()
        views = [view(FIRST, name="a"), view(SECOND, name="b")]
        said = run(stage, *((seen.id, stage.begin(seen, wish(model, 8))) for seen in views))
    return [{"text": s.text, "frames": [list(f) for f in s.frames], "samples": len(s.pcm) // 2} for s in said]


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = register()
    print(json.dumps(answers(Path(sys.argv[1]), sys.argv[2], sys.argv[3], moved=True)))
