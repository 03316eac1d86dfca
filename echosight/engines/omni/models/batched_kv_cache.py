"""Keys and values of replies that decode together: one row each, in shared tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

LENGTH_STEP = 256
"""Rows grow, and attention reaches, in multiples of this many tokens."""
FIRST_LENGTH = 512
"""In a fixed cache, attention reaches this many tokens or twice, four times… as many: few lengths, few CUDA graphs."""


class BatchedKvCache:
    """A batch that replies join with a copy of their conversation's cache and leave one by one.

    Row i belongs to the i-th owner. Every row is filled from the left and masked behind its own length, so replies of
    different lengths share a step, and the growth of one moves no other. `config` is the text config of a transformers
    model; the cache holds at most `rows` rows of `length` tokens. `fixed` allocates all of it once and never again,
    because CUDA graphs keep the addresses.
    """

    def __init__(
        self, device: torch.device | str, dtype: torch.dtype, config: Any, *, rows: int, length: int, fixed: bool
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._layers: int = config.num_hidden_layers
        self._heads: int = config.num_key_value_heads
        self._width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._limits = (rows, _round_up(length))
        self._owners: list[object] = []
        self.lengths: list[int] = []
        """Tokens of each row."""
        self.fixed = fixed
        self.keys, self.values = self._allocate(*(self._limits if fixed else (1, LENGTH_STEP)))
        """One tensor (rows, heads, length, width) for each layer."""

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return self._limits[0]

    @property
    def length_limit(self) -> int:
        """Tokens that fit into a row."""
        return self._limits[1]

    def row_of(self, owner: object) -> int:
        """Raises ValueError for an owner without a row."""
        return self._owners.index(owner)

    def length_of(self, owner: object) -> int:
        """Tokens in the owner's row."""
        return self.lengths[self.row_of(owner)]

    def add(self, owner: object, cache: Any, length: int) -> None:
        """Add a row with the first `length` tokens of a `DynamicCache` of one row. Raises MemoryError when full."""
        row = len(self._owners)
        self._reserve(row + 1, length + 1)
        for layer in range(self._layers):
            self.keys[layer][row, :, :length] = cache.layers[layer].keys[0, :, :length]
            self.values[layer][row, :, :length] = cache.layers[layer].values[0, :, :length]
        self._owners.append(owner)
        self.lengths.append(length)

    def remove(self, owner: object) -> None:
        """Remove the owner's row, if there is one; the last row moves into its place."""
        if owner not in self._owners:
            return
        row, last = self.row_of(owner), len(self._owners) - 1
        if row != last:
            for tensor in (*self.keys, *self.values):
                tensor[row, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            self._owners[row], self.lengths[row] = self._owners[last], self.lengths[last]
        self._owners.pop()
        self.lengths.pop()

    def export(self, owner: object, cache: Any, start: int) -> None:
        """Append the owner's tokens from index `start` on to a `DynamicCache` that holds exactly `start` tokens."""
        row = self.row_of(owner)
        span = slice(start, self.lengths[row])
        for layer in range(self._layers):
            cache.update(self.keys[layer][row, None, :, span], self.values[layer][row, None, :, span], layer)

    def step(self, owners: Sequence[object]) -> DecodeStep:
        """One new token for each owner; their lengths grow at once.

        In a fixed cache all rows take part, so that a CUDA graph sees one shape. A row without an owner in `owners`
        writes to the place that its next real token overwrites.
        """
        rows = [self.row_of(owner) for owner in owners]
        batch = list(range(self._row_bucket(len(self)))) if self.fixed else rows
        starts = [self.lengths[row] if row < len(self) else 0 for row in batch]
        reach = max(self.lengths[row] for row in rows) + 1
        self._reserve(len(self), reach)
        for row in rows:
            self.lengths[row] += 1
        row_tensor = torch.tensor(batch, device=self._device)
        indices = rows if self.fixed else list(range(len(rows)))
        is_prefix = batch == list(range(len(batch)))
        reach = self._length_bucket(reach) if self.fixed else _round_up(reach)
        return DecodeStep(self, row_tensor, torch.tensor(starts, device=self._device), reach, indices, is_prefix)

    def dummy_steps(self) -> Iterator[DecodeStep]:
        """A step of every shape that a fixed cache can take, to record graphs with while the cache has no rows."""
        for rows in sorted({self._row_bucket(n + 1) for n in range(self._limits[0])}):
            row_tensor = torch.arange(rows, device=self._device)
            for reach in sorted({self._length_bucket(n) for n in range(1, self._limits[1] + 1, LENGTH_STEP)}):
                yield DecodeStep(self, row_tensor, torch.zeros_like(row_tensor), reach, [], True)

    def _row_bucket(self, rows: int) -> int:
        """The next power of two, so that few graphs serve any number of replies."""
        return min(1 << (rows - 1).bit_length(), self._limits[0])

    def _length_bucket(self, length: int) -> int:
        doublings = max(0, (-(-length // FIRST_LENGTH) - 1).bit_length())
        return min(FIRST_LENGTH << doublings, self._limits[1])

    def _allocate(self, rows: int, length: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        def tensors() -> list[torch.Tensor]:
            # Zeros, because attention multiplies masked values by 0, and 0 * NaN is NaN.
            shape = (rows, self._heads, length, self._width)
            return [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._layers)]

        return tensors(), tensors()

    def _reserve(self, rows: int, length: int) -> None:
        old_rows, _, old_length, _ = self.keys[0].shape
        if rows <= old_rows and length <= old_length:
            return
        if self.fixed or rows > self._limits[0]:
            raise MemoryError(f"{rows} replies of {length} tokens exceed the batched KV cache of {self._limits}")
        keys, values = self._allocate(max(rows, old_rows), _round_up(max(length, old_length)))
        for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True):
            new[:old_rows, :, :old_length] = old
        self.keys, self.values = keys, values


class DecodeStep:
    """Stands in for a transformers cache in a step of one token: writes each row's new key and value in place.

    `rows` (b,) int64 are the rows that take part, and `starts` (b,) int64 the index of each one's new token. Attention
    reaches the first `reach` tokens. `indices` says which element of the batch each of the step's owners is.
    `is_prefix` means that `rows` are 0, 1, 2…
    """

    def __init__(
        self,
        store: BatchedKvCache,
        rows: torch.Tensor,
        starts: torch.Tensor,
        reach: int,
        indices: list[int],
        is_prefix: bool,
    ) -> None:
        self._store = store
        self._is_prefix = is_prefix
        self.rows = rows
        self.starts = starts
        self.reach = reach
        self.indices = indices

    @property
    def shape(self) -> tuple[int, int]:
        """(b, reach)."""
        return len(self.rows), self.reach

    @property
    def mask(self) -> torch.Tensor:
        """(b, 1, 1, reach) bool: the tokens of each row, its new one included."""
        index = torch.arange(self.reach, device=self.starts.device)
        return (index <= self.starts[:, None])[:, None, None]

    def scatter(self, values: Sequence[T], filler: T) -> list[T]:
        """The owners' values in the order of the batch, `filler` for the other rows."""
        batch = [filler] * len(self.rows)
        for index, value in zip(self.indices, values, strict=True):
            batch[index] = value
        return batch

    def owners(self) -> list[int]:
        """For each element of the batch, the number of its owner in the step; 0 for rows without one."""
        return self.scatter(list(range(len(self.indices))), 0)

    def with_tensors(self, rows: torch.Tensor, starts: torch.Tensor) -> DecodeStep:
        """The same step with other tensors for its rows and starts: the static inputs of a CUDA graph."""
        return DecodeStep(self._store, rows, starts, self.reach, self.indices, self._is_prefix)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New keys and values (b, heads, 1, width) in; all of each row's, (b, heads, reach, width), out."""
        keys, values = self._store.keys[layer_idx], self._store.values[layer_idx]
        keys[self.rows, :, self.starts] = key[:, :, 0]
        values[self.rows, :, self.starts] = value[:, :, 0]
        # The first rows are a view; any others must be gathered, which copies.
        selected = slice(len(self.rows)) if self._is_prefix else self.rows
        return keys[selected, :, : self.reach], values[selected, :, : self.reach]


class ScratchCache:
    """Stands in for a transformers cache that lives for a few tokens; it never waits for the device."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New keys and values (b, heads, n, width) in; all so far out."""
        if layer_idx in self._layers:
            keys, values = self._layers[layer_idx]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        self._layers[layer_idx] = key, value
        return key, value


def _round_up(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
