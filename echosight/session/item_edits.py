"""What a client may change in the conversation by hand: add, delete, fetch and truncate items."""

from __future__ import annotations

from dataclasses import replace

from echosight.conversation import AudioPart, Conversation, Item, UserTurn
from echosight.errors import InputError
from echosight.events import (
    AddItem,
    ItemAdded,
    ItemDone,
    ItemRemoved,
    ItemRetrieved,
    ItemTruncated,
    RemoveItem,
    RetrieveItem,
    Truncate,
)
from echosight.media import INPUT_SAMPLE_RATE
from echosight.session.outbox import Outbox
from echosight.session.playback import PlaybackTracker, RecentPlayback
from echosight.session.user_turn import UserInput


class ItemEditor:
    """Applies edits to a session's conversation and announces them."""

    def __init__(
        self, conversation: Conversation, playback: RecentPlayback, user_input: UserInput, outbox: Outbox
    ) -> None:
        self._conversation = conversation
        self._playback = playback
        self._user_input = user_input
        self._outbox = outbox

    def apply(self, event: AddItem | RemoveItem | RetrieveItem | Truncate) -> None:
        """Raises `InputError` where an item is unknown or cannot be changed this way."""
        match event:
            case AddItem(item, after):
                self._add(item, after)
            case RemoveItem(item_id):
                self._require_item(item_id, "delete")
                self._conversation.remove(item_id)
                self._outbox.push(ItemRemoved(item_id))
            case RetrieveItem(item_id):
                self._outbox.push(ItemRetrieved(self._require_item(item_id, "retrieve")))
            case Truncate():
                self._truncate(event)

    def validate_truncate(self, event: Truncate) -> PlaybackTracker:
        """The playback of the speech that is to be cut. Raises `InputError` where it cannot be cut there."""
        item = self._require_item(event.item_id, "truncate")
        tracker = self._playback.get(event.item_id)
        is_spoken = item.audio is not None or (tracker is not None and tracker.duration_ms > 0)
        if item.role != "assistant" or not is_spoken:
            raise InputError(
                f"Error truncating item: the item with id '{event.item_id}' has no speech of the assistant.",
                code="item_truncate_invalid_item_id",
                param="item_id",
            )
        tracker = tracker or PlaybackTracker.of_part(item.audio or AudioPart(None))
        if event.audio_ms < 0:
            raise InputError("Invalid value for 'audio_end_ms': it must not be negative.", param="audio_end_ms")
        if event.audio_ms > tracker.duration_ms + 1:
            raise InputError(
                f"Audio content of {round(tracker.duration_ms)}ms is already shorter than {event.audio_ms}ms",
                param="audio_end_ms",
            )
        return tracker

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
            self._user_input.transcribe_item(UserTurn.from_item(item))
        self._outbox.push(ItemAdded(item, previous))
        self._outbox.push(ItemDone(item, previous))

    def _truncate(self, event: Truncate) -> None:
        tracker = self.validate_truncate(event)
        item = self._require_item(event.item_id, "truncate")
        rate = item.audio.rate if item.audio else INPUT_SAMPLE_RATE
        part = replace(tracker.truncated_at(event.audio_ms), rate=rate)
        item = self._conversation.update(replace(item, parts=(part,), status="incomplete"))
        self._outbox.push(ItemTruncated(item.id, event.audio_ms, item.text, requested=True))

    def _require_item(self, item_id: str, verb: str) -> Item:
        item = self._conversation.get(item_id)
        if item is None:
            gerund = f"{verb[:-1]}ing" if verb.endswith("e") else f"{verb}ing"
            raise InputError(
                f"Error {gerund} item: the item with id '{item_id}' does not exist.",
                code=f"item_{verb}_invalid_item_id",
                param="item_id",
            )
        return item
