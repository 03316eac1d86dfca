"""The caches of one conversation: what is written to them, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import DynamicCache

from echosight.engines.omni import positions
from echosight.engines.omni.batched_kv_cache import trim

if TYPE_CHECKING:
    from echosight.engines.omni.model import OmniModel

FrameType = Literal["text", "audio", "image"]


class ContextFull(Exception):
    """What is to be written does not fit behind what is there."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as tokens: `features` (height * width, hidden); `deep` such tensors for the first layers (Qwen3)."""

    features: torch.Tensor
    deep: tuple[torch.Tensor, ...]
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens on their way into the caches: `ids` (n), `positions` (3, n); the talker counts from `talker_start` on.

    Where `ids` are `placeholder`, `features` (placeholders, hidden) take the place of embeddings.
    """

    ids: tuple[int, ...]
    positions: torch.Tensor
    talker_start: int
    role: str
    kind: FrameType = "text"
    placeholder: int = -1
    features: torch.Tensor | None = None
    deep: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a conversation's caches: tokens in each, next position for each, and tokens by kind."""

    thinker: int = 0
    talker: int = 0
    position: int = 0
    talker_position: int = 0
    text: int = 0
    audio: int = 0
    image: int = 0


class Context:
    """Keys and values of a conversation's tokens, in the thinker and in the talker.

    Writing only collects; `flush` computes all that was collected in one pass. `at` and `len` count what was written.
    """

    def __init__(self, model: OmniModel, limit: int) -> None:
        self.model = model
        self.thinker: Any = DynamicCache()
        self.talker: Any = DynamicCache()
        self.at = Mark()
        self.limit = limit
        """Tokens that may be written, but for what closes a reply."""
        self._written: list[Segment] = []

    def __len__(self) -> int:
        return self.at.thinker

    @property
    def computed(self) -> int:
        """Tokens in the thinker's cache."""
        length: int = self.thinker.get_seq_length()
        return length

    def write(self, ids: Sequence[int], role: str, *, bounded: bool = True) -> None:
        """Text or markers. Raises `ContextFull` where they do not fit, unless not `bounded`."""
        if bounded:
            self._check(len(ids))
        self._add(Segment(tuple(ids), positions.linear(self.at.position, len(ids)), self.at.talker_position, role))

    def write_speech(self, features: torch.Tensor, role: str) -> None:
        """Encoded speech, (n, hidden). Raises `ContextFull`."""
        token, count = self.model.audio_token, len(features)
        self._check(count)
        places = positions.linear(self.at.position, count)
        self._add(Segment((token,) * count, places, self.at.talker_position, role, "audio", token, features))

    def write_picture(self, picture: Picture, role: str) -> None:
        """A picture between its markers. Raises `ContextFull`."""
        tokens, token = self.model.tokens, self.model.image_token
        ids = (tokens.image_start, *(token,) * len(picture.features), tokens.image_end)
        self._check(len(ids))
        places = positions.picture(self.at.position, picture.height, picture.width)
        start = self.at.talker_position
        self._add(Segment(ids, places, start, role, "image", token, picture.features, picture.deep))

    def flush(self) -> torch.Tensor | None:
        """Compute what was written. Returns the thinker's last hidden state (1, hidden), None if there was nothing."""
        if not self._written:
            return None
        written, self._written = self._written, []
        return self.model.prefill(self, written)

    def back_to(self, mark: Mark) -> None:
        """As if nothing had been written since `mark`."""
        if mark.thinker > self.computed:
            self.flush()
        self._written = []
        trim(self.thinker, mark.thinker)
        trim(self.talker, mark.talker)
        self.at = mark

    def took_reply(self, tokens: int) -> None:
        """Both caches were given this many tokens of an answer, elsewhere."""
        self._move(tokens, tokens, tokens if self.model.talker_reads("assistant") else 0, "text")

    def _check(self, tokens: int) -> None:
        if len(self) + tokens > self.limit:
            raise ContextFull

    def _add(self, segment: Segment) -> None:
        self._written.append(segment)
        read = self.model.talker_reads(segment.role)
        span = int(segment.positions.max()) + 1 - self.at.position if segment.ids else 0
        self._move(len(segment.ids), span, span if read else 0, segment.kind)

    def _move(self, tokens: int, span: int, talker_span: int, kind: FrameType) -> None:
        at = self.at
        counts = {"text": at.text, "audio": at.audio, "image": at.image}
        counts[kind] += tokens
        self.at = Mark(
            at.thinker + tokens,
            at.talker + (tokens if talker_span else 0),
            at.position + span,
            at.talker_position + talker_span,
            **counts,
        )
