"""Keys and values of answers that decode together: one row each, side by side in fixed tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

LENGTH_STEP = 256
"""Rows grow, and are attended, by this many tokens at a time."""
FIRST_LENGTH = 512
"""Fixed rows are attended up to this many tokens or twice, four times… as many: few lengths, so few CUDA graphs."""


class Rows:
    """A batch that answers join with a copy of their cache and leave one by one.

    Row `i` belongs to the i-th answer that is still here. Every row is filled from the left and masked beyond its own
    length, so answers of different lengths share one step and none is ever moved by another's growth.
    `fixed` allocates everything at once and never again: CUDA graphs keep the addresses.
    """

    def __init__(
        self, device: torch.device | str, dtype: torch.dtype, layout: Any, *, rows: int, length: int, fixed: bool
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._layers: int = layout.num_hidden_layers
        self._heads: int = layout.num_key_value_heads
        self._width: int = getattr(layout, "head_dim", None) or layout.hidden_size // layout.num_attention_heads
        self._limits = (rows, _rounded(length))
        self._owners: list[object] = []
        self.lengths: list[int] = []
        self.fixed = fixed
        self.keys, self.values = self._allocate(*(self._limits if fixed else (1, LENGTH_STEP)))

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def capacity(self) -> int:
        return self._limits[0]

    @property
    def length_limit(self) -> int:
        """Tokens a row can hold."""
        return self._limits[1]

    def row_of(self, owner: object) -> int:
        return self._owners.index(owner)

    def length_of(self, owner: object) -> int:
        return self.lengths[self.row_of(owner)]

    def join(self, owner: object, cache: Any, length: int) -> None:
        """Add a row with the first `length` tokens of a `DynamicCache` of one conversation."""
        row = len(self._owners)
        self._reserve(row + 1, length + 1)
        for layer in range(self._layers):
            self.keys[layer][row, :, :length] = cache.layers[layer].keys[0, :, :length]
            self.values[layer][row, :, :length] = cache.layers[layer].values[0, :, :length]
        self._owners.append(owner)
        self.lengths.append(length)

    def leave(self, owner: object) -> None:
        """Drop a row; the last one takes its place. An owner that has none is fine."""
        if owner not in self._owners:
            return
        row, last = self.row_of(owner), len(self._owners) - 1
        if row != last:
            for store in (*self.keys, *self.values):
                store[row, :, : self.lengths[last]] = store[last, :, : self.lengths[last]]
            self._owners[row], self.lengths[row] = self._owners[last], self.lengths[last]
        self._owners.pop()
        self.lengths.pop()

    def hand_over(self, owner: object, cache: Any, start: int) -> None:
        """Append what the row gained since token `start` to a `DynamicCache` that holds exactly `start` tokens."""
        row = self.row_of(owner)
        span = slice(start, self.lengths[row])
        for layer in range(self._layers):
            cache.update(self.keys[layer][row, None, :, span], self.values[layer][row, None, :, span], layer)

    def step(self, owners: Sequence[object]) -> RowStep:
        """One token for each of these rows; their lengths grow at once.

        Fixed rows take part all together, so that a CUDA graph sees one shape: those that nobody asked for write to
        a place that their next real token overwrites.
        """
        rows = [self.row_of(owner) for owner in owners]
        taking_part = list(range(self._row_bucket(len(self)))) if self.fixed else rows
        starts = [self.lengths[row] if row < len(self) else 0 for row in taking_part]
        reach = max(self.lengths[row] for row in rows) + 1
        self._reserve(len(self), reach)
        for row in rows:
            self.lengths[row] += 1
        index = torch.tensor(taking_part, device=self._device)
        places = rows if self.fixed else list(range(len(rows)))
        leading = taking_part == list(range(len(taking_part)))
        limit = self._length_bucket(reach) if self.fixed else _rounded(reach)
        return RowStep(self, index, torch.tensor(starts, device=self._device), limit, places, leading)

    def blank_steps(self) -> Iterator[RowStep]:
        """A step of every shape that fixed rows can take, to record graphs with while no answer is here."""
        for rows in sorted({self._row_bucket(n + 1) for n in range(self._limits[0])}):
            index = torch.arange(rows, device=self._device)
            for limit in sorted({self._length_bucket(n) for n in range(1, self._limits[1] + 1, LENGTH_STEP)}):
                yield RowStep(self, index, torch.zeros_like(index), limit, [], True)

    def _row_bucket(self, rows: int) -> int:
        """The next power of two, so that few graphs serve any number of answers."""
        return min(1 << (rows - 1).bit_length(), self._limits[0])

    def _length_bucket(self, length: int) -> int:
        doublings = max(0, (-(-length // FIRST_LENGTH) - 1).bit_length())
        return min(FIRST_LENGTH << doublings, self._limits[1])

    def _allocate(self, rows: int, length: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        def store() -> list[torch.Tensor]:
            # Zeros, because what is masked must still be a number.
            shape = (rows, self._heads, length, self._width)
            return [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._layers)]

        return store(), store()

    def _reserve(self, rows: int, length: int) -> None:
        have_rows, _, have_length, _ = self.keys[0].shape
        if rows <= have_rows and length <= have_length:
            return
        if self.fixed or rows > self._limits[0]:
            raise MemoryError(f"{rows} answers of {length} tokens exceed the decoding rows {self._limits}")
        keys, values = self._allocate(max(rows, have_rows), _rounded(max(length, have_length)))
        for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True):
            new[:have_rows, :, :have_length] = old
        self.keys, self.values = keys, values


class RowStep:
    """Stands in for a transformers cache during a step of one token: writes each row's new key and value in place.

    `rows` and `starts` are (b,); attention reaches `limit` tokens, of which `mask` (b, 1, 1, limit) keeps a row's own.
    `places` says where in the batch each of the step's owners is.
    """

    def __init__(
        self, store: Rows, rows: torch.Tensor, starts: torch.Tensor, limit: int, places: list[int], leading: bool
    ) -> None:
        self._store = store
        self._leading = leading
        self.rows = rows
        self.starts = starts
        self.limit = limit
        self.places = places

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.limit

    @property
    def mask(self) -> torch.Tensor:
        reach = torch.arange(self.limit, device=self.starts.device)
        return (reach <= self.starts[:, None])[:, None, None]

    def place(self, values: Sequence[T], filler: T) -> list[T]:
        """The owners' values in the order of the batch."""
        placed = [filler] * len(self.rows)
        for place, value in zip(self.places, values, strict=True):
            placed[place] = value
        return placed

    def owners(self) -> list[int]:
        """For each place in the batch, which of the step's owners is there; the first where nobody is."""
        return self.place(list(range(len(self.places))), 0)

    def reading(self, rows: torch.Tensor, starts: torch.Tensor) -> RowStep:
        """The same step with its rows in other tensors: those a CUDA graph was recorded with."""
        return RowStep(self._store, rows, starts, self.limit, self.places, self._leading)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (b, heads, 1, width) in; all of each row's, (b, heads, limit, width), out."""
        keys, values = self._store.keys[layer_idx], self._store.values[layer_idx]
        keys[self.rows, :, self.starts] = key[:, :, 0]
        values[self.rows, :, self.starts] = value[:, :, 0]
        # The first rows are a view; any others have to be gathered.
        taken = slice(len(self.rows)) if self._leading else self.rows
        return keys[taken, :, : self.limit], values[taken, :, : self.limit]


class Brief:
    """Stands in for a transformers cache that lives for a few tokens, and touches nothing but the device."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (b, heads, new, width) in; all so far out."""
        if layer_idx in self._kept:
            keys, values = self._kept[layer_idx]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        self._kept[layer_idx] = key, value
        return key, value


def trim(cache: Any, length: int) -> None:
    """Cut a `DynamicCache` to its first `length` tokens (its own `crop` takes a negative count)."""
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)


def _rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
