"""CUDA graphs: a step is recorded once for its shapes and replayed without the cost of Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

log = logging.getLogger(__name__)

Function = Callable[..., tuple[torch.Tensor, ...]]
WARM_UP_RUNS = 3
"""Runs before recording, in which libraries choose their kernels and allocate workspaces."""


class GraphRecorder:
    """Runs functions of tensors; on a CUDA device as graphs, one for each key.

    A key stands for the shapes of the inputs and for everything that the function closes over. Closed-over tensors must
    keep their addresses, and running a function twice with the same inputs must be harmless. A function that cannot be
    recorded (it copies a number to the host, say) runs eagerly from then on.
    """

    def __init__(self, device: torch.device | str, *, enabled: bool = True) -> None:
        self.enabled = enabled and torch.device(device).type == "cuda"
        self._graphs: dict[Hashable, tuple[Any, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}
        self._unrecordable: set[str] = set()
        self._pool: Any = None
        self._device = device

    @property
    def unrecordable(self) -> frozenset[str]:
        """Names of functions that could not be recorded."""
        return frozenset(self._unrecordable)

    def fork(self) -> GraphRecorder:
        """A recorder with memory of its own: graphs of different CUDA streams must not share memory."""
        return GraphRecorder(self._device, enabled=self.enabled)

    def run(self, name: str, key: Hashable, function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`function(*inputs)`; the caller owns the results. `key` None: shapes that are too rare to record."""
        if not self.enabled or key is None or name in self._unrecordable:
            return function(*inputs)
        if (name, key) not in self._graphs:
            try:
                self._graphs[name, key] = self._record(function, inputs)
            except RuntimeError as error:
                log.warning("%s runs without a CUDA graph: %s", name, error)
                self._unrecordable.add(name)
                return function(*inputs)
        graph, static_inputs, results = self._graphs[name, key]
        for static, value in zip(static_inputs, inputs, strict=True):
            static.copy_(value)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _record(
        self, function: Function, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[Any, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        cuda: Any = torch.cuda
        static_inputs = tuple(value.clone() for value in inputs)
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(*static_inputs)
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool):
            results = function(*static_inputs)
        self._pool = self._pool or graph.pool()
        return graph, static_inputs, results
