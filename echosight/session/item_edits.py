"""What a client may change in the conversation by hand: add, delete, fetch and truncate items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from echosight import events as ev
from echosight.conversation import AudioPart, Conversation, Item, UserTurn
from echosight.errors import InputError
from echosight.media import INPUT_SAMPLE_RATE
from echosight.session.playback import PlaybackTracker
from echosight.session.response import RecentResponses
from echosight.session.user_turn import UserInput


class ItemEditor:
    """Applies edits to a session's conversation and announces them."""

    def __init__(
        self,
        conversation: Conversation,
        answers: RecentResponses,
        hearing: UserInput,
        announce: Callable[[ev.Output], None],
    ) -> None:
        self._conversation = conversation
        self._answers = answers
        self._hearing = hearing
        self._announce = announce

    def apply(self, event: ev.AddItem | ev.RemoveItem | ev.RetrieveItem | ev.Truncate) -> None:
        """Raises `InputError` where an item is unknown or cannot be changed so."""
        match event:
            case ev.AddItem(item, after):
                self._add(item, after)
            case ev.RemoveItem(item_id):
                self._known(item_id, "delete")
                self._conversation.remove(item_id)
                self._announce(ev.ItemRemoved(item_id))
            case ev.RetrieveItem(item_id):
                self._announce(ev.ItemRetrieved(self._known(item_id, "retrieve")))
            case ev.Truncate():
                self._truncate(event)

    def _add(self, item: Item, after: str | None) -> None:
        if after not in (None, "root") and self._conversation.get(after) is None:
            raise InputError(
                f"Error creating item: the previous item with id '{after}' does not exist.",
                code="item_create_invalid_previous_item_id",
                param="previous_item_id",
            )
        turn = self._conversation.pending_turn
        if self._conversation.get(item.id) is not None or (turn is not None and turn.id == item.id):
            raise InputError(
                f"Error creating item: an item with id '{item.id}' already exists.",
                code="item_create_duplicate_item_id",
                param="item.id",
            )
        previous = self._conversation.add(item, after)
        if item.needs_transcript:
            self._hearing.understand(UserTurn.from_item(item))
        self._announce(ev.ItemAdded(item, previous))
        self._announce(ev.ItemDone(item, previous))

    def check(self, event: ev.Truncate) -> PlaybackTracker:
        """The account of the speech that is to be cut. Raises `InputError` where it cannot be cut there."""
        item = self._known(event.item_id, "truncate")
        answer = self._answers.with_item(event.item_id)
        spoke = item.audio is not None or (answer is not None and answer.ledger.spoken_ms > 0)
        if item.role != "assistant" or not spoke:
            raise InputError(
                f"Error truncating item: the item with id '{event.item_id}' has no speech of the assistant.",
                code="item_truncate_invalid_item_id",
                param="item_id",
            )
        ledger = answer.ledger if answer else PlaybackTracker.of(item.audio or AudioPart(None))
        if event.audio_ms < 0:
            raise InputError("Invalid value for 'audio_end_ms': it must not be negative.", param="audio_end_ms")
        if event.audio_ms > ledger.spoken_ms + 1:
            raise InputError(
                f"Audio content of {round(ledger.spoken_ms)}ms is already shorter than {event.audio_ms}ms",
                param="audio_end_ms",
            )
        return ledger

    def _truncate(self, event: ev.Truncate) -> None:
        ledger = self.check(event)
        item = self._known(event.item_id, "truncate")
        rate = item.audio.rate if item.audio else INPUT_SAMPLE_RATE
        part = replace(ledger.until(event.audio_ms), rate=rate)
        item = self._conversation.update(replace(item, parts=(part,), status="incomplete"))
        self._announce(ev.ItemTruncated(item.id, event.audio_ms, item.text, requested=True))

    def _known(self, item_id: str, verb: str) -> Item:
        item = self._conversation.get(item_id)
        if item is None:
            gerund = f"{verb[:-1]}ing" if verb.endswith("e") else f"{verb}ing"
            raise InputError(
                f"Error {gerund} item: the item with id '{item_id}' does not exist.",
                code=f"item_{verb}_invalid_item_id",
                param="item_id",
            )
        return item
