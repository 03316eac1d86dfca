"""CUDA graphs: without a GPU, no step waits for the device; with one, replayed steps equal eager steps."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from echosight.engines.omni.graphs import Function, GraphRecorder
from echosight.engines.omni.load import load_model
from echosight.engines.omni.model_runner import ModelRunner
from echosight.engines.omni.models.state import Limits
from tests.engines.omni.speech import FIRST, SECOND, Reply, reply_to, run_together, snapshot, spoken_request

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount", "lift_fresh")
"""Operations that copy a number to the host, depend on one, or copy a new constant to the device."""

Mode: Any = TorchDispatchMode


class Watch(Mode):  # type: ignore[misc]
    """Notes operations that a CUDA graph cannot record."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name.startswith(WAITS):
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


class WatchingRecorder(GraphRecorder):
    """Runs everything eagerly, under watch."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.watches: dict[str, Watch] = {}

    def run(self, name: str, key: Hashable, function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self.watches.setdefault(name, Watch()):
            return function(*inputs)


def test_no_step_waits_for_the_device(runner: ModelRunner, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = WatchingRecorder()
    monkeypatch.setattr(model, "recorder", watching)
    monkeypatch.setattr(model, "vocoder_recorder", watching)
    reply_to(runner, snapshot(FIRST), spoken_request(model))
    assert len(watching.watches) >= 3
    assert {name: watch.seen for name, watch in watching.watches.items() if watch.seen} == {}


def test_the_watch_notices_operations_that_wait() -> None:
    with Watch() as watch:
        assert torch.ones(3).sum().item() == 3
        torch.tensor([1.0]) + torch.ones(1)
    assert watch.seen == {"_local_scalar_dense", "lift_fresh"}


def test_without_a_gpu_functions_run_eagerly() -> None:
    (twice,) = GraphRecorder("cpu").run("double", 1, lambda x: (2 * x,), torch.ones(2))
    assert twice.tolist() == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_graphs_equal_eager_steps(folders: dict[str, Path], model_type: str) -> None:
    limits = Limits(context_tokens=1024, batch_size=2, speech_frames=80)
    model = load_model(folders[model_type], model_type, "cuda", "float32", limits)
    model.text_stop_tokens = model.codec_stop_tokens = frozenset()
    replies: list[list[Reply]] = []
    for graphs in (False, True):
        model.recorder = GraphRecorder("cuda", enabled=graphs)
        model.vocoder_recorder = model.recorder.fork()
        runner = ModelRunner(model, 2, 256)
        runner.warm_up()
        snapshots = [snapshot(FIRST, conversation_id="a"), snapshot(SECOND, conversation_id="b")]
        replies.append(
            run_together(runner, *((seen.id, runner.start(seen, spoken_request(model, 20))) for seen in snapshots))
        )
        assert model.recorder.unrecordable == model.vocoder_recorder.unrecordable == frozenset()
    for eager, replayed in zip(*replies, strict=True):
        assert (eager.text, eager.frames) == (replayed.text, replayed.frames)
        assert len(eager.pcm) == len(replayed.pcm) > 0
        assert max(abs(a - b) for a, b in zip(_samples(eager), _samples(replayed), strict=True)) < 64


def _samples(reply: Reply) -> list[int]:
    return list(memoryview(reply.pcm).cast("h"))
