"""What a model has read of each conversation, as keys and values: brought into line with a prompt by rolling back."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from echosight.engines.llm.transformers.prompt import Run, Symbol

STEP = 512
"""Tokens of a prompt that are read in one go; between two of them, others get their turn."""

ROLLED_BACK = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(slots=True)
class Memory:
    """`symbols[n]` is at place n of the cache, and `positions[n]` is the position of what comes behind it."""

    cache: Any
    symbols: list[Symbol] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        layers = getattr(self.cache, "layers", ())
        tensors = (getattr(layer, name, None) for layer in layers for name in ("keys", "values"))
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


class Mind:
    """A causal model and what it remembers of conversations. `limit_bytes` bounds the latter."""

    def __init__(self, model: Any, limit_bytes: int) -> None:
        self.model = model
        self.device = model.device
        self._limit = limit_bytes
        self._memories: OrderedDict[str, Memory] = OrderedDict()
        text = model.config.get_text_config(decoder=True)
        kinds = set(getattr(text, "layer_types", None) or ROLLED_BACK)
        self.rolls_back = kinds <= ROLLED_BACK
        self.context: int = getattr(text, "max_position_embeddings", None) or 1 << 20
        accepted = inspect.signature(model.forward).parameters
        self._keep_one = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
        scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
        self._axes = 3 if self._rope_index is not None and "mrope_section" in scaling else 0

    @contextmanager
    def borrow(self, conversation: str) -> Iterator[Memory]:
        """What is remembered of a conversation. It is forgotten where a step fails: that leaves layers of unequal
        length. Otherwise it is kept, and where that is too much, the conversations unused for longest are forgotten.
        """
        memory = self._memories.pop(conversation, None) or self._blank()
        try:
            yield memory
        except GeneratorExit:
            self._keep(conversation, memory)
            raise
        self._keep(conversation, memory)

    def forget(self, conversation: str) -> None:
        self._memories.pop(conversation, None)

    def roll_back(self, memory: Memory, runs: Sequence[Run], *, whole: bool = True) -> int:
        """Forget what `runs` do not begin with; returns how many symbols stay.

        To have `whole` runs read means to read their last token anew, for what comes next.
        """
        symbols = [symbol for run in runs for symbol in run.symbols]
        held = len(memory.symbols)
        common = next(
            (n for n, (a, b) in enumerate(zip(memory.symbols, symbols, strict=False)) if a != b),
            min(held, len(symbols)),
        )
        if whole:
            common = max(0, min(common, len(symbols) - 1))
        elif common == len(symbols):
            return common
        # A picture is kept whole or not at all.
        while common < len(symbols) and isinstance(symbol := symbols[common], tuple) and symbol[1]:
            common -= 1
        if common < held and not (self.rolls_back and common):
            memory.cache, common = self._blank().cache, 0
        elif common < held:
            memory.cache.crop(common - held)
        del memory.symbols[common:], memory.positions[common:]
        return common

    def read(self, memory: Memory, runs: Sequence[Run], kept: int) -> Iterator[torch.Tensor]:
        """Read what of `runs` follows the first `kept` symbols, a step at a time; each gives the logits (v,)."""
        for run in runs:
            known = min(kept, len(run.ids))
            kept -= known
            ids = run.ids[known:]
            step = max(len(ids), 1) if run.key else STEP
            for at in range(0, len(ids), step):
                yield self._step(memory, run, ids[at : at + step])

    def go_on(self, memory: Memory, token: int) -> torch.Tensor:
        """Read one token more; returns the logits (v,)."""
        logits: torch.Tensor = self._step(memory, Run((token,)), (token,))
        return logits

    def _blank(self) -> Memory:
        from transformers import DynamicCache

        # Without the model's configuration all layers keep everything, also those that look at a window only:
        # what was let go could not be rolled back to.
        return Memory(DynamicCache() if self.rolls_back else DynamicCache(config=self.model.config))

    def _keep(self, conversation: str, memory: Memory) -> None:
        self._memories[conversation] = memory
        total = sum(kept.nbytes for kept in self._memories.values())
        while total > self._limit and len(self._memories) > 1:
            total -= self._memories.popitem(last=False)[1].nbytes

    @torch.inference_mode()
    def _step(self, memory: Memory, run: Run, ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=self.device)
        start = memory.positions[-1] if memory.positions else 0
        positions, following = self._positions(run, tokens, start)
        given = {name: self._to_device(tensor) for name, tensor in (run.tensors or {}).items()}
        made = self.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=memory.cache,
            use_cache=True,
            **given,
            **self._keep_one,
        )
        memory.symbols += run.symbols if run.key else ids
        memory.positions += following
        logits: torch.Tensor = made.logits[0, -1]
        return logits

    def _positions(self, run: Run, tokens: torch.Tensor, start: int) -> tuple[torch.Tensor, list[int]]:
        """Positions of the tokens, (1, n) or (3, 1, n), and the position that follows each of them."""
        count = tokens.shape[1]
        if run.key and self._axes and run.tensors is not None:
            assert self._rope_index is not None
            grid = self._to_device(run.tensors["image_grid_thw"])
            kinds = self._to_device(run.tensors["mm_token_type_ids"])
            positions, _ = self._rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grid)
            positions = positions + start
            return positions, [int(positions.max()) + 1] * count
        positions = torch.arange(start, start + count, device=self.device)[None]
        following = list(range(start + 1, start + count + 1))
        return (positions.expand(self._axes, 1, -1) if self._axes else positions), following

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)
