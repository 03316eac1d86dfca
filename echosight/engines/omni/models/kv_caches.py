"""The two KV caches of one conversation, and positions in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class CachePosition:
    """A place in a conversation's caches: tokens before it in each cache, the next rotary positions, tokens by kind."""

    thinker_tokens: int = 0
    talker_tokens: int = 0
    thinker_position: int = 0
    talker_position: int = 0
    text_tokens: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0


@dataclass(slots=True, eq=False)
class KvCaches:
    """Keys and values of a conversation, each a transformers `DynamicCache` with one row.

    `end` counts all tokens that were written, also those that are not yet computed.
    """

    thinker: Any = field(default_factory=DynamicCache)
    talker: Any = field(default_factory=DynamicCache)
    end: CachePosition = CachePosition()

    @property
    def computed(self) -> int:
        """Tokens in the thinker's cache."""
        length: int = self.thinker.get_seq_length()
        return length


def trim(cache: Any, length: int) -> None:
    """Cut a `DynamicCache` to its first `length` tokens (its own `crop` takes the number to remove, negated)."""
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)
