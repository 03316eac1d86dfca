"""Writing to the KV caches of one conversation, and rewinding them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.kv_caches import CachePosition, KvCaches, trim
from echosight.engines.omni.models.positions import image_positions, linear_positions
from echosight.engines.omni.models.segments import ImageTokens, Segment, SegmentKind


class ContextFull(Exception):
    """The tokens do not fit behind those that the context holds."""


class Context:
    """The caches of a conversation. `write` only collects tokens; `flush` computes all of them in one pass.

    At most `limit` tokens can be written, except for the tokens that end a reply.
    """

    def __init__(self, model: OmniModel, limit: int) -> None:
        self.model = model
        self.kv = KvCaches()
        self.limit = limit
        self._pending: list[Segment] = []

    def __len__(self) -> int:
        """Tokens that were written."""
        return self.end.thinker_tokens

    @property
    def end(self) -> CachePosition:
        """The position behind the last token that was written."""
        return self.kv.end

    @property
    def computed(self) -> int:
        """Tokens that were computed."""
        return self.kv.computed

    def write(self, ids: Sequence[int], role: str, *, bounded: bool = True) -> None:
        """Text or markers. Raises `ContextFull` where they do not fit, unless not `bounded`."""
        if bounded:
            self._require(len(ids))
        positions = linear_positions(self.end.thinker_position, len(ids))
        self._append(Segment(tuple(ids), positions, self.end.talker_position, role))

    def write_speech(self, features: torch.Tensor, role: str) -> None:
        """Encoded speech (n, hidden). Raises `ContextFull`."""
        token, count = self.model.audio_token, len(features)
        self._require(count)
        positions = linear_positions(self.end.thinker_position, count)
        start = self.end.talker_position
        self._append(Segment((token,) * count, positions, start, role, "audio", token, features))

    def write_image(self, image: ImageTokens, role: str) -> None:
        """An image between its markers. Raises `ContextFull`."""
        tokens, token = self.model.tokens, self.model.image_token
        ids = (tokens.image_start, *(token,) * len(image.features), tokens.image_end)
        self._require(len(ids))
        positions = image_positions(self.end.thinker_position, image.height, image.width)
        start = self.end.talker_position
        self._append(Segment(ids, positions, start, role, "image", token, image.features, image.deepstack))

    def flush(self) -> torch.Tensor | None:
        """Compute the tokens that were written. Returns the thinker's last hidden state (1, hidden), None if none."""
        if not self._pending:
            return None
        segments, self._pending = self._pending, []
        return self.model.prefill(self.kv, segments)

    def rewind(self, position: CachePosition) -> None:
        """Remove everything behind `position`."""
        if position.thinker_tokens > self.computed:
            self.flush()
        self._pending = []
        trim(self.kv.thinker, position.thinker_tokens)
        trim(self.kv.talker, position.talker_tokens)
        self.kv.end = position

    def advance_reply(self, tokens: int) -> None:
        """Count the text tokens of a reply that the decode steps computed and appended to both caches."""
        self._advance(tokens, tokens, tokens if self.model.talker_reads("assistant") else 0, "text")

    def _require(self, tokens: int) -> None:
        if len(self) + tokens > self.limit:
            raise ContextFull

    def _append(self, segment: Segment) -> None:
        self._pending.append(segment)
        read = self.model.talker_reads(segment.role)
        span = int(segment.positions.max()) + 1 - self.end.thinker_position if segment.ids else 0
        self._advance(len(segment.ids), span, span if read else 0, segment.kind)

    def _advance(self, tokens: int, span: int, talker_span: int, kind: SegmentKind) -> None:
        """Move the end by `tokens`, and by `span` and `talker_span` rotary positions."""
        end = self.end
        self.kv.end = CachePosition(
            end.thinker_tokens + tokens,
            end.talker_tokens + (tokens if talker_span else 0),
            end.thinker_position + span,
            end.talker_position + talker_span,
            end.text_tokens + (tokens if kind == "text" else 0),
            end.audio_tokens + (tokens if kind == "audio" else 0),
            end.image_tokens + (tokens if kind == "image" else 0),
        )
