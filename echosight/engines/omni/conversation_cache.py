"""What the caches hold of one conversation, and how they are brought into line with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch

from echosight.conversation import AudioPart, Item, ToolCall
from echosight.engines.omni.context import Context, ContextFull, Mark
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.user_turn import CachedUserTurn
from echosight.errors import EngineFailure


@dataclass(frozen=True, slots=True)
class View:
    """A conversation as it is at one moment: `turn` is the user's open turn as the item that it would be now."""

    id: str
    items: tuple[Item, ...]
    system: str
    turn: Item | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """An item in the caches, and where it ends there. `essence` is the hash of what was written of it."""

    key: tuple[str, int]
    essence: int
    end: Mark

    def holds(self, item: Item) -> bool:
        """Whether the caches hold this item: an edit of what is not written (a transcript, say) is none."""
        return self.key == (item.id, item.version) or (self.key[0] == item.id and self.essence == _essence(item))


class Memory:
    """The caches of a conversation, derived from its items and never ahead of them but for two things at their end:
    the user's open turn as far as it was heard, and a reply that no item claims yet.
    """

    def __init__(self, model: OmniModel, prompt_limit: int) -> None:
        self._model = model
        self.context = Context(model, prompt_limit)
        self._system: str | None = None
        self._base = Mark()
        self._kept: list[Kept] = []
        self._forgotten: set[str] = set()
        self._turn: CachedUserTurn | None = None
        self._reply: str | None = None

    @property
    def samples_needed(self) -> int:
        """Samples of the open turn with which there is more to compute; 0 before the turn was begun."""
        return self._turn.needed if self._turn is not None else 0

    def follow(self, view: View) -> None:
        """Compute what can be computed of the open turn."""
        turn = view.turn
        if turn is None:
            return
        while True:
            try:
                self._bring_into_line(view, turn.id)
                self._turn = self._turn or CachedUserTurn(self.context, turn.id)
                self._turn.catch_up(turn)
                self.context.flush()
            except ContextFull:
                self._forget_oldest(view)
            else:
                return

    def prepare_reply(self, view: View, late_instructions: str | None) -> tuple[Mark, torch.Tensor]:
        """Hold exactly the conversation, then the head of a reply: where that began, and the last hidden state."""
        tokens = self._model.tokens
        while True:
            try:
                self._bring_into_line(view, None)
                start = self.context.at
                if late_instructions is not None:
                    self._write_message("system", late_instructions)
                self.context.write(tokens.header("assistant"), "assistant")
            except ContextFull:
                self._forget_oldest(view)
                continue
            hidden = self.context.flush()
            assert hidden is not None
            return start, hidden

    def keep_reply(self, text: str) -> None:
        """The reply behind the conversation is complete; an item that says the same may claim it."""
        self._reply = text

    def _bring_into_line(self, view: View, open_turn: str | None) -> None:
        if view.system != self._system:
            self._start_over(view.system)
        items = [item for item in view.items if item.id not in self._forgotten]
        common = self._common(items)
        if common < len(self._kept):
            self._back_to(common)
        if common < len(items):
            common += self._claim(items[common])
        if self._reply is not None or (self._turn is not None and self._turn.id != open_turn):
            self._back_to(common)
        if common < len(items):
            self._back_to(common)
        for item in items[common:]:
            self._write_item(item)

    def _common(self, items: Sequence[Item]) -> int:
        """How many items the caches and the conversation share at the front."""
        pairs = zip(self._kept, items, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].holds(pair[1]), pairs))

    def _claim(self, item: Item) -> int:
        """1 if what stands at the end of the caches is this item, 0 if it is not."""
        if self._reply is not None and _says(item, self._reply):
            self._reply = None
        elif self._turn is not None and self._turn.fits(item):
            self._turn.finish(item)
            self._turn = None
        else:
            return 0
        self._keep(item)
        return 1

    def _back_to(self, count: int) -> None:
        """Keep the first `count` items and nothing behind them."""
        del self._kept[count:]
        self._turn = self._reply = None
        self.context.back_to(self._kept[-1].end if self._kept else self._base)

    def _start_over(self, system: str) -> None:
        self._kept, self._turn, self._reply = [], None, None
        self._forgotten = set()
        self.context.back_to(Mark())
        self._system = None
        if system:
            self._write_message("system", system)
        self._base = self.context.at
        self._system = system

    def _write_item(self, item: Item) -> None:
        match item.role:
            case "user" | "tool":
                CachedUserTurn(self.context, item.id).finish(item)
            case "assistant":
                calls = "".join(_call(part) for part in item.parts_of(ToolCall))
                self._write_message("assistant", item.text + calls)
            case "system":
                self._write_message("system", item.text)
        self._keep(item)

    def _keep(self, item: Item) -> None:
        self._kept.append(Kept((item.id, item.version), _essence(item), self.context.at))

    def _write_message(self, role: str, text: str) -> None:
        tokens = self._model.tokens
        self.context.write((*tokens.header(role), *tokens.encode(text), *tokens.footer), role)

    def _forget_oldest(self, view: View) -> None:
        """Let the oldest whole turns go, until half of the room is free, so that it need not be done every turn."""
        items = [item for item in view.items if item.id not in self._forgotten]
        starts = [index for index, item in enumerate(items) if item.role == "user" and index > 0]
        if view.turn is not None and items:
            starts.append(len(items))
        if not starts:
            raise EngineFailure("The turn is longer than the model's context", code="context_length_exceeded")
        ends = [self._base, *(kept.end for kept in self._kept)]
        known = [start for start in starts if start < len(ends)] or starts[:1]
        enough, held = self.context.limit // 2, len(self.context)
        first = next((s for s in known if s < len(ends) and held - ends[s].thinker <= enough), known[-1])
        self._forgotten.update(item.id for item in items[:first])
        self._back_to(0)


def _essence(item: Item) -> int:
    """Speech that is heard needs no transcript; that of the assistant is its transcript."""
    if item.role in ("assistant", "system"):
        return hash((item.role, item.text, *item.parts_of(ToolCall)))
    heard = (
        replace(part, transcript=None, words=()) if isinstance(part, AudioPart) and part.pcm is not None else part
        for part in item.parts
    )
    return hash((item.role, *heard))


def _says(item: Item, reply: str) -> bool:
    return item.role == "assistant" and not any(item.parts_of(ToolCall)) and item.text.strip() == reply.strip()


def _call(part: ToolCall) -> str:
    return f'\n<tool_call>\n{{"name": "{part.name}", "arguments": {part.arguments}}}\n</tool_call>'
