"""What a CUDA graph may hold: without a GPU that no step asks the device back, with one that replays say the same."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from echosight.engines.omni.graphs import Function, Recorder
from echosight.engines.omni.load import read_model
from echosight.engines.omni.model_runner import Stage
from echosight.engines.omni.state import Limits
from tests.engines.omni.speech import FIRST, SECOND, Said, ask, run, view, wish

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount", "lift_fresh")
"""Operations that bring a number to the host, depend on one, or bring a new constant to the device."""

Mode: Any = TorchDispatchMode


class Watch(Mode):  # type: ignore[misc]
    """Notes the operations that could not be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name.startswith(WAITS):
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


class Watching(Recorder):
    """Runs everything eagerly, under watch."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.watches: dict[str, Watch] = {}

    def run(self, name: str, key: Hashable, function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self.watches.setdefault(name, Watch()):
            return function(*inputs)


def test_no_step_waits_for_the_device(stage: Stage, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching()
    monkeypatch.setattr(model, "recorder", watching)
    monkeypatch.setattr(model, "vocoder_recorder", watching)
    ask(stage, view(FIRST), wish(model))
    assert len(watching.watches) >= 3
    assert {name: watch.seen for name, watch in watching.watches.items() if watch.seen} == {}


def test_the_watch_sees_what_waits() -> None:
    with Watch() as watch:
        assert torch.ones(3).sum().item() == 3
        torch.tensor([1.0]) + torch.ones(1)
    assert watch.seen == {"_local_scalar_dense", "lift_fresh"}


def test_without_a_gpu_functions_run_as_they_are() -> None:
    (twice,) = Recorder("cpu").run("double", 1, lambda x: (2 * x,), torch.ones(2))
    assert twice.tolist() == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_say_what_eager_steps_say(folders: dict[str, Path], kind: str) -> None:
    limits = Limits(context=1024, answers=2, frames=80)
    model = read_model(folders[kind], kind, "cuda", "float32", limits)
    model.text_ends = model.codec_ends = frozenset()
    said: list[list[Said]] = []
    for graphs in (False, True):
        model.recorder = Recorder("cuda", enabled=graphs)
        model.vocoder_recorder = model.recorder.another()
        stage = Stage(model, 2, 256)
        stage.warm_up()
        views = [view(FIRST, name="a"), view(SECOND, name="b")]
        said.append(run(stage, *((seen.id, stage.begin(seen, wish(model, 20))) for seen in views)))
        assert model.recorder.refused == model.vocoder_recorder.refused == frozenset()
    for eager, replayed in zip(*said, strict=True):
        assert (eager.text, eager.frames) == (replayed.text, replayed.frames)
        assert len(eager.pcm) == len(replayed.pcm) > 0
        assert max(abs(a - b) for a, b in zip(_samples(eager), _samples(replayed), strict=True)) < 64


def _samples(said: Said) -> list[int]:
    return list(memoryview(said.pcm).cast("h"))
