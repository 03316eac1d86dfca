"""CUDA graphs: a step recorded once for its shapes and replayed without Python in the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

logger = logging.getLogger(__name__)

Function = Callable[..., tuple[torch.Tensor, ...]]
WARM_UPS = 3
"""Runs before recording, in which libraries choose their kernels and allocate workspaces."""


class Recorder:
    """Runs functions of tensors; on a CUDA device as graphs, one for each key.

    A key stands for the shapes of the inputs and for all else that the function closes over. What it closes over must
    keep its address, and running it twice with the same inputs must be harmless. A function that cannot be
    recorded (it reads a number back, say) runs eagerly from then on.
    """

    def __init__(self, device: torch.device | str, *, enabled: bool = True) -> None:
        self.enabled = enabled and torch.device(device).type == "cuda"
        self._graphs: dict[Hashable, tuple[Any, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}
        self._refused: set[str] = set()
        self._pool: Any = None
        self._device = device

    @property
    def refused(self) -> frozenset[str]:
        """Functions that could not be recorded."""
        return frozenset(self._refused)

    def another(self) -> Recorder:
        """One that records on its own memory, for another stream."""
        return Recorder(self._device, enabled=self.enabled)

    def run(self, name: str, key: Hashable, function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`function(*inputs)`, with results of the caller's own. `key` None: shapes that hardly come again."""
        if not self.enabled or key is None or name in self._refused:
            return function(*inputs)
        if (name, key) not in self._graphs:
            try:
                self._graphs[name, key] = self._record(function, inputs)
            except RuntimeError as error:
                logger.warning("%s runs without a CUDA graph: %s", name, error)
                self._refused.add(name)
                return function(*inputs)
        graph, held, results = self._graphs[name, key]
        for place, value in zip(held, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _record(
        self, function: Function, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[Any, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        cuda: Any = torch.cuda
        held = tuple(value.clone() for value in inputs)
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(WARM_UPS):
                function(*held)
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool):
            results = function(*held)
        self._pool = self._pool or graph.pool()
        return graph, held, results
