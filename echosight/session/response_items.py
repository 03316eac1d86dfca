"""The items that a response puts into the conversation, built from the engine's chunks."""

from __future__ import annotations

from dataclasses import replace

from echosight.audio.resampling import Resampler
from echosight.conversation import Conversation, Item, Part, Status, TextPart, ToolCall
from echosight.engines import SpeechChunk, TextChunk, ToolCallChunk
from echosight.events import Delta, ItemAdded, ItemDone, Output, SpeechDelta, TextDelta, ToolCallDelta
from echosight.media import AudioChunk
from echosight.session.playback import PlaybackTracker


class ResponseItems:
    """Turns chunks into items and deltas.

    Items enter the conversation with their first chunk, behind the item that they respond to whatever was added
    meanwhile, and are completed by `complete`. A response out of band writes into a conversation that is discarded.
    """

    def __init__(
        self, response_id: str, conversation: Conversation, tracker: PlaybackTracker, engine_rate: int, output_rate: int
    ) -> None:
        self.message: Item | None = None
        self.spoken = False
        """Whether the message has speech; then its text is the transcript of it."""
        self.completed: list[Item] = []
        """Items that are complete and that the client has not deleted."""
        self._response_id = response_id
        self._conversation = conversation
        self._tracker = tracker
        self._after = conversation.items[-1].id if conversation.items else "root"
        self._engine_rate = engine_rate
        self._output_rate = output_rate
        self._resampler = Resampler(engine_rate, output_rate)
        self._calls: dict[str, ToolCall] = {}
        self._call_items: dict[str, Item] = {}

    def add(self, chunk: TextChunk | SpeechChunk | ToolCallChunk) -> tuple[list[Output], Delta]:
        """What a chunk changes: announcements, then one delta."""
        match chunk:
            case TextChunk(text):
                announcements, item = self._open_message()
                self._tracker.add_text(text)
                return announcements, TextDelta(self._response_id, item.id, text)
            case SpeechChunk():
                return self._add_speech(chunk)
            case ToolCallChunk():
                return self._add_call(chunk)

    def flush(self) -> SpeechDelta | None:
        """The last samples, which the resampler held back."""
        pcm = self._resampler.push(b"", last=True) if self.spoken else b""
        if not pcm or self.message is None:
            return None
        return SpeechDelta(self._response_id, self.message.id, AudioChunk(pcm, self._output_rate))

    def complete(self, status: Status, played_ms: float | None) -> list[ItemDone]:
        """Complete every item. `played_ms` cuts the message to what was played; None keeps all of it."""
        events = []
        if self.message is not None:
            events.append(self._complete(replace(self.message, parts=self.parts_until(played_ms), status=status)))
        for call_id, item in self._call_items.items():
            events.append(self._complete(replace(item, parts=(self._calls[call_id],), status=status)))
        return events

    def truncate(self, ms: float) -> Item | None:
        """Cut the message in the conversation to what begins within `ms` of its speech; None if it is gone."""
        if self.message is None or (item := self._conversation.get(self.message.id)) is None:
            return None
        return self._conversation.update(replace(item, parts=self.parts_until(ms), status="incomplete"))

    def parts_until(self, ms: float | None) -> tuple[Part, ...]:
        """The message's parts as far as they were played within `ms`; None: all of them. Text that was not spoken
        counts as far as it was sent."""
        tracker = self._tracker
        if not self.spoken:
            return (TextPart(tracker.text if ms is None else tracker.text[: tracker.sent_chars]),)
        return (replace(tracker.truncated_at(tracker.duration_ms if ms is None else ms), rate=self._output_rate),)

    def _open_message(self) -> tuple[list[Output], Item]:
        if self.message is not None:
            return [], self.message
        self.message = Item("assistant", (), status="in_progress")
        return [self._add_item(self.message)], self.message

    def _add_speech(self, chunk: SpeechChunk) -> tuple[list[Output], Delta]:
        announcements, item = self._open_message()
        self.spoken = True
        self._tracker.add_audio(len(chunk.pcm) * 500 / self._engine_rate, chunk.words)
        pcm = self._resampler.push(chunk.pcm)
        audio = AudioChunk(pcm, self._output_rate)
        return announcements, SpeechDelta(self._response_id, item.id, audio, chunk.words)

    def _add_call(self, chunk: ToolCallChunk) -> tuple[list[Output], Delta]:
        announcements: list[Output] = []
        if chunk.call_id not in self._calls:
            self._calls[chunk.call_id] = ToolCall(chunk.call_id, chunk.name, "")
            item = Item("assistant", (self._calls[chunk.call_id],), status="in_progress")
            self._call_items[chunk.call_id] = item
            announcements.append(self._add_item(item))
        call = self._calls[chunk.call_id]
        self._calls[chunk.call_id] = replace(call, arguments=call.arguments + chunk.arguments)
        item_id = self._call_items[call.call_id].id
        return announcements, ToolCallDelta(self._response_id, item_id, call.call_id, call.name, chunk.arguments)

    def _add_item(self, item: Item) -> ItemAdded:
        known = self._after == "root" or self._conversation.get(self._after) is not None
        previous = self._conversation.add(item, self._after if known else None)
        self._after = item.id
        return ItemAdded(item, previous, self._response_id)

    def _complete(self, item: Item) -> ItemDone:
        if self._conversation.get(item.id) is None:  # the client deleted it while it was generated
            return ItemDone(item, None, self._response_id)
        item = self._conversation.update(item)
        self.completed.append(item)
        return ItemDone(item, self._conversation.previous_id(item.id), self._response_id)
