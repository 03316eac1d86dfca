"""KV caches of conversations on one model; a cache is rewound to the longest prefix that it shares with a prompt."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from echosight.engines.llm.transformers.prompt import CacheKey, PromptSegment

PREFILL_TOKENS = 512
"""Prompt tokens of one prefill step; between two steps, the model's thread serves other conversations."""

REWINDABLE = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layer types whose cache can be cut; recurrent layers keep a state instead."""


@dataclass(slots=True)
class KvCache:
    """A conversation's cache.

    `cache_keys[n]` names the token at index n of the cache, and `positions[n]` is the rotary position of the token
    that follows it.
    """

    cache: Any
    cache_keys: list[CacheKey] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of its key and value tensors."""
        layers = getattr(self.cache, "layers", ())
        tensors = (getattr(layer, name, None) for layer in layers for name in ("keys", "values"))
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


class CachedModel:
    """A causal transformers model with the KV caches of its conversations, at most `limit_bytes` of them.

    The most recently used cache is kept even where it alone exceeds the limit.
    """

    def __init__(self, model: Any, limit_bytes: int) -> None:
        self.model = model
        self.device = model.device
        self._limit_bytes = limit_bytes
        self._caches: OrderedDict[str, KvCache] = OrderedDict()
        text = model.config.get_text_config(decoder=True)
        layer_types = set(getattr(text, "layer_types", None) or REWINDABLE)
        self.can_rewind = layer_types <= REWINDABLE
        self.context_size: int = getattr(text, "max_position_embeddings", None) or 1 << 20
        """Tokens of a prompt and its reply."""
        accepted = inspect.signature(model.forward).parameters
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
        scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
        self._rope_axes = 3 if self._rope_index is not None and "mrope_section" in scaling else 0

    @contextmanager
    def lease(self, conversation_id: str) -> Iterator[KvCache]:
        """The conversation's cache, or an empty one.

        Where a step raises, the cache is dropped, because its layers may differ in length. Otherwise it is stored, and
        the least recently used caches are dropped until the limit is met.
        """
        cache = self._caches.pop(conversation_id, None) or self._empty()
        try:
            yield cache
        except GeneratorExit:
            self._store(conversation_id, cache)
            raise
        self._store(conversation_id, cache)

    def release(self, conversation_id: str) -> None:
        """Drop the conversation's cache, if there is one."""
        self._caches.pop(conversation_id, None)

    def rewind(self, cache: KvCache, segments: Sequence[PromptSegment], *, recompute_last: bool = True) -> int:
        """Cut the cache to the prefix that it shares with `segments`; returns the length of that prefix in tokens.

        With `recompute_last` the prefix excludes the prompt's last token, so that `prefill` gives the logits behind
        it; without, a cache that already holds the whole prompt stays as it is.
        """
        target = [key for segment in segments for key in segment.cache_keys]
        held = len(cache.cache_keys)
        common = next(
            (n for n, (a, b) in enumerate(zip(cache.cache_keys, target, strict=False)) if a != b),
            min(held, len(target)),
        )
        if recompute_last:
            common = max(0, min(common, len(target) - 1))
        elif common == len(target):
            return common
        # An image is computed in one step, so its tokens are kept all or not at all.
        while common < len(target) and isinstance(key := target[common], tuple) and key[1]:
            common -= 1
        if common < held and not (self.can_rewind and common):
            cache.cache, common = self._empty().cache, 0
        elif common < held:
            cache.cache.crop(common - held)
        del cache.cache_keys[common:], cache.positions[common:]
        return common

    def prefill(self, cache: KvCache, segments: Sequence[PromptSegment], cached: int) -> Iterator[torch.Tensor]:
        """Compute `segments` behind their first `cached` tokens, step by step; each step yields its logits (v,)."""
        for segment in segments:
            skipped = min(cached, len(segment.ids))
            cached -= skipped
            ids = segment.ids[skipped:]
            stride = max(len(ids), 1) if segment.image_hash else PREFILL_TOKENS
            for start in range(0, len(ids), stride):
                yield self._forward(cache, segment, ids[start : start + stride])

    def step(self, cache: KvCache, token: int) -> torch.Tensor:
        """Compute one more token; returns the logits (v,) behind it."""
        logits: torch.Tensor = self._forward(cache, PromptSegment((token,)), (token,))
        return logits

    def _empty(self) -> KvCache:
        from transformers import DynamicCache

        # Without the model's configuration, sliding-window layers keep all tokens, too: a cache cannot be rewound to
        # tokens that it dropped.
        return KvCache(DynamicCache() if self.can_rewind else DynamicCache(config=self.model.config))

    def _store(self, conversation_id: str, cache: KvCache) -> None:
        self._caches[conversation_id] = cache
        total = sum(stored.nbytes for stored in self._caches.values())
        while total > self._limit_bytes and len(self._caches) > 1:
            total -= self._caches.popitem(last=False)[1].nbytes

    @torch.inference_mode()
    def _forward(self, cache: KvCache, segment: PromptSegment, ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=self.device)
        start = cache.positions[-1] if cache.positions else 0
        positions, following = self._positions(segment, tokens, start)
        image_inputs = {name: self._to_device(tensor) for name, tensor in (segment.tensors or {}).items()}
        output = self.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache.cache,
            use_cache=True,
            **image_inputs,
            **self._last_logits_only,
        )
        cache.cache_keys += segment.cache_keys if segment.image_hash else ids
        cache.positions += following
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _positions(self, segment: PromptSegment, tokens: torch.Tensor, start: int) -> tuple[torch.Tensor, list[int]]:
        """Positions of the tokens, (1, n), or (3, 1, n) for multimodal rotary positions; and the one behind each."""
        count = tokens.shape[1]
        if segment.image_hash and self._rope_axes and segment.tensors is not None:
            assert self._rope_index is not None
            grid = self._to_device(segment.tensors["image_grid_thw"])
            token_types = self._to_device(segment.tensors["mm_token_type_ids"])
            positions, _ = self._rope_index(tokens, mm_token_type_ids=token_types, image_grid_thw=grid)
            positions = positions + start
            return positions, [int(positions.max()) + 1] * count
        positions = torch.arange(start, start + count, device=self.device)[None]
        following = list(range(start + 1, start + count + 1))
        return (positions.expand(self._rope_axes, 1, -1) if self._rope_axes else positions), following

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)
