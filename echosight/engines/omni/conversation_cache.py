"""What the KV caches hold of one conversation, and how they follow its edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch

from echosight.conversation import AudioPart, Item, ToolCall
from echosight.engines.omni.context import Context, ContextFull
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.kv_caches import CachePosition
from echosight.engines.omni.user_turn import CachedUserTurn
from echosight.errors import EngineFailure


@dataclass(frozen=True, slots=True)
class ConversationSnapshot:
    """A conversation at one moment. `turn` is the user's pending turn as the item that it would be now."""

    id: str
    items: tuple[Item, ...]
    system: str
    turn: Item | None = None


@dataclass(frozen=True, slots=True)
class CachedItem:
    """An item in the caches. `content_hash` covers the content that was written; `end` is the position behind it."""

    key: tuple[str, int]
    content_hash: int
    end: CachePosition

    def holds(self, item: Item) -> bool:
        """Whether the caches hold this item. A new version with the same written content (only a transcript was
        added, say) counts as the same.
        """
        same_content = self.key[0] == item.id and self.content_hash == _content_hash(item)
        return self.key == (item.id, item.version) or same_content


class ConversationCache:
    """The caches of a conversation, a function of its items and system prompt.

    Two things may follow the items at the end: the user's pending turn as far as it was taken, and a complete reply
    that is not yet an item of the conversation. `prompt_limit` is in tokens.
    """

    def __init__(self, model: OmniModel, prompt_limit: int) -> None:
        self._model = model
        self.context = Context(model, prompt_limit)
        self._system: str | None = None
        self._base = CachePosition()
        """The position behind the system prompt."""
        self._cached: list[CachedItem] = []
        self._dropped_ids: set[str] = set()
        """Items that no longer fit into the context."""
        self._turn: CachedUserTurn | None = None
        self._reply: str | None = None

    @property
    def samples_needed(self) -> int:
        """Samples of the pending turn with which there is more to compute; 0 before the turn has begun."""
        return self._turn.samples_needed if self._turn is not None else 0

    def prefill_turn(self, snapshot: ConversationSnapshot) -> None:
        """Compute the whole windows of the pending turn. Raises `EngineFailure` where the turn does not fit."""
        turn = snapshot.turn
        if turn is None:
            return
        while True:
            try:
                self._align(snapshot, turn.id)
                self._turn = self._turn or CachedUserTurn(self.context, turn.id)
                self._turn.catch_up(turn)
                self.context.flush()
            except ContextFull:
                self._drop_oldest(snapshot)
            else:
                return

    def begin_reply(
        self, snapshot: ConversationSnapshot, late_instructions: str | None
    ) -> tuple[CachePosition, torch.Tensor]:
        """Hold exactly the conversation, then the header of a reply.

        `late_instructions` are a system message for this reply alone. Returns the position behind the conversation and
        the thinker's last hidden state (1, hidden). Raises `EngineFailure` where the last turn does not fit.
        """
        tokens = self._model.tokens
        while True:
            try:
                self._align(snapshot, None)
                start = self.context.end
                if late_instructions is not None:
                    self._write_message("system", late_instructions)
                self.context.write(tokens.header("assistant"), "assistant")
            except ContextFull:
                self._drop_oldest(snapshot)
                continue
            hidden = self.context.flush()
            assert hidden is not None
            return start, hidden

    def keep_reply(self, text: str) -> None:
        """A complete reply is behind the conversation; an assistant item with the same text will adopt it."""
        self._reply = text

    def _align(self, snapshot: ConversationSnapshot, pending_turn: str | None) -> None:
        """Write what the caches lack and remove what the conversation lacks; keep the longest common prefix."""
        if snapshot.system != self._system:
            self._restart(snapshot.system)
        items = [item for item in snapshot.items if item.id not in self._dropped_ids]
        common = self._common_prefix(items)
        if common < len(self._cached):
            self._rewind(common)
        if common < len(items):
            common += self._adopt(items[common])
        if self._reply is not None or (self._turn is not None and self._turn.id != pending_turn):
            self._rewind(common)
        if common < len(items):
            self._rewind(common)
        for item in items[common:]:
            self._write_item(item)

    def _common_prefix(self, items: Sequence[Item]) -> int:
        """How many items the caches and the conversation share at the front."""
        pairs = zip(self._cached, items, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].holds(pair[1]), pairs))

    def _adopt(self, item: Item) -> int:
        """Make the reply or turn at the end of the caches this item; returns 1, or 0 where neither is the item."""
        if self._reply is not None and _has_text(item, self._reply):
            self._reply = None
        elif self._turn is not None and self._turn.is_prefix_of(item):
            self._turn.finish(item)
            self._turn = None
        else:
            return 0
        self._record(item)
        return 1

    def _rewind(self, count: int) -> None:
        """Keep the first `count` items and nothing behind them."""
        del self._cached[count:]
        self._turn = self._reply = None
        self.context.rewind(self._cached[-1].end if self._cached else self._base)

    def _restart(self, system: str) -> None:
        self._cached, self._turn, self._reply = [], None, None
        self._dropped_ids = set()
        self.context.rewind(CachePosition())
        self._system = None
        if system:
            self._write_message("system", system)
        self._base = self.context.end
        self._system = system

    def _write_item(self, item: Item) -> None:
        match item.role:
            case "user" | "tool":
                CachedUserTurn(self.context, item.id).finish(item)
            case "assistant":
                calls = "".join(_tool_call_text(part) for part in item.parts_of(ToolCall))
                self._write_message("assistant", item.text + calls)
            case "system":
                self._write_message("system", item.text)
        self._record(item)

    def _record(self, item: Item) -> None:
        self._cached.append(CachedItem((item.id, item.version), _content_hash(item), self.context.end))

    def _write_message(self, role: str, text: str) -> None:
        tokens = self._model.tokens
        self.context.write((*tokens.header(role), *tokens.encode(text), *tokens.footer), role)

    def _drop_oldest(self, snapshot: ConversationSnapshot) -> None:
        """Drop the oldest whole turns until half of the context is free, so that it is not needed in every turn."""
        items = [item for item in snapshot.items if item.id not in self._dropped_ids]
        starts = [index for index, item in enumerate(items) if item.role == "user" and index > 0]
        if snapshot.turn is not None and items:
            starts.append(len(items))
        if not starts:
            raise EngineFailure("The turn is longer than the model's context", code="context_length_exceeded")
        ends = [self._base, *(cached.end for cached in self._cached)]
        measured = [start for start in starts if start < len(ends)] or starts[:1]
        goal, held = self.context.limit // 2, len(self.context)
        fitting = (s for s in measured if s < len(ends) and held - ends[s].thinker_tokens <= goal)
        self._dropped_ids.update(item.id for item in items[: next(fitting, measured[-1])])
        self._rewind(0)


def _content_hash(item: Item) -> int:
    """Of the content that `_write_item` writes: user speech without its transcript, the assistant's text only."""
    if item.role in ("assistant", "system"):
        return hash((item.role, item.text, *item.parts_of(ToolCall)))
    parts = (
        replace(part, transcript=None, words=()) if isinstance(part, AudioPart) and part.pcm is not None else part
        for part in item.parts
    )
    return hash((item.role, *parts))


def _has_text(item: Item, reply: str) -> bool:
    return item.role == "assistant" and not any(item.parts_of(ToolCall)) and item.text.strip() == reply.strip()


def _tool_call_text(part: ToolCall) -> str:
    return f'\n<tool_call>\n{{"name": "{part.name}", "arguments": {part.arguments}}}\n</tool_call>'
