"""One answer in progress: the items it makes, what was said of them, and how far it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from echosight.audio.resampling import Resampler
from echosight.conversation import Conversation, Item, Part, Status, TextPart, ToolCall, new_id
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.events import (
    Delta,
    ItemAdded,
    ItemDone,
    Outcome,
    Output,
    ResponseEnded,
    SpeechDelta,
    TextDelta,
    ToolCallDelta,
    Waterfall,
)
from echosight.media import AudioChunk, Word
from echosight.session.playback import PlaybackTracker

Stage = Literal["endpoint", "transcript", "first_text", "first_audio", "first_byte"]


class Response:
    """Turns an engine's pieces into events and items.

    Items enter the conversation with their first piece, behind what they answer whatever was said meanwhile, and are
    completed by `end`. An answer out of band writes into a conversation that nobody keeps.
    """

    def __init__(
        self, conversation: Conversation, from_hz: int, to_hz: int, clock: Callable[[], float], speech_end: float | None
    ) -> None:
        self.turn = new_id("resp")
        self.waterfall = Waterfall()
        self.ledger = PlaybackTracker()
        self.message: Item | None = None
        self.ended = False
        self._conversation = conversation
        self._after = conversation.items[-1].id if conversation.items else "root"
        self._rate = to_hz
        self._from_hz = from_hz
        self._resampler = Resampler(from_hz, to_hz)
        self._spoke = False
        self._calls: dict[str, ToolCall] = {}
        self._call_items: dict[str, Item] = {}
        self._done: list[Item] = []
        self._summary = GenerationSummary()
        self._clock = clock
        self._since = clock() if speech_end is None else speech_end
        self.mark("endpoint")

    def mark(self, stage: Stage) -> None:
        """A stage of the turn's waterfall is reached, unless it was before."""
        if getattr(self.waterfall, stage) is None:
            setattr(self.waterfall, stage, (self._clock() - self._since) * 1000)

    def take(self, piece: Chunk) -> tuple[list[Output], Delta | None]:
        """What a piece makes known: announcements, then at most one delta."""
        match piece:
            case TextChunk(text=text):
                news, item = self._message()
                self.mark("first_text")
                self.ledger.said(text)
                return news, TextDelta(self.turn, item.id, text)
            case SpeechChunk(pcm=pcm, words=words):
                return self._speak(pcm, words)
            case ToolCallChunk():
                return self._call(piece)
            case GenerationSummary():
                self._summary = piece
                return [], None

    def rest(self) -> SpeechDelta | None:
        """The last samples, which resampling held back."""
        pcm = self._resampler.push(b"", last=True) if self._spoke else b""
        if not pcm or self.message is None:
            return None
        return SpeechDelta(self.turn, self.message.id, AudioChunk(pcm, self._rate))

    def end(
        self, outcome: Outcome, reason: str | None, heard_ms: float | None, error: str | None = None
    ) -> list[Output]:
        """The events that close the answer. `heard_ms` cuts what it said to what was heard; None keeps it all."""
        self.ended = True
        self.ledger.complete = outcome == "completed"
        if outcome == "completed" and self._summary.finish != "stop":
            outcome = "incomplete"
            reason = "max_output_tokens" if self._summary.finish == "length" else self._summary.finish
        status: Status = "completed" if outcome == "completed" else "incomplete"
        events: list[Output] = []
        if self.message is not None:
            events.append(self._complete(replace(self.message, parts=self._said(heard_ms), status=status)))
        for call_id, item in self._call_items.items():
            events.append(self._complete(replace(item, parts=(self._calls[call_id],), status=status)))
        ended = ResponseEnded(
            self.turn,
            outcome,
            reason,
            tuple(self._done),
            self._summary.usage,
            self.waterfall,
            self._summary.providers,
            error,
        )
        return [*events, ended]

    def cut(self, ms: float) -> Item | None:
        """Keep in the conversation only what is begun within `ms` of the answer's speech."""
        if self.message is None or (item := self._conversation.get(self.message.id)) is None:
            return None
        return self._conversation.update(replace(item, parts=self._said(ms), status="incomplete"))

    def _message(self) -> tuple[list[Output], Item]:
        if self.message is not None:
            return [], self.message
        self.message = Item("assistant", (), status="in_progress")
        return [self._add(self.message)], self.message

    def _speak(self, pcm: bytes, words: tuple[Word, ...]) -> tuple[list[Output], Delta | None]:
        news, item = self._message()
        self._spoke = True
        self.mark("first_audio")
        self.ledger.spoke(len(pcm) * 500 / self._from_hz, words)
        pcm = self._resampler.push(pcm)
        return news, SpeechDelta(self.turn, item.id, AudioChunk(pcm, self._rate), words)

    def _call(self, piece: ToolCallChunk) -> tuple[list[Output], Delta | None]:
        news: list[Output] = []
        if piece.call_id not in self._calls:
            self._calls[piece.call_id] = ToolCall(piece.call_id, piece.name, "")
            item = Item("assistant", (self._calls[piece.call_id],), status="in_progress")
            self._call_items[piece.call_id] = item
            news.append(self._add(item))
        call = self._calls[piece.call_id]
        self._calls[piece.call_id] = replace(call, arguments=call.arguments + piece.arguments)
        delta = ToolCallDelta(self.turn, self._call_items[call.call_id].id, call.call_id, call.name, piece.arguments)
        return news, delta

    def _add(self, item: Item) -> ItemAdded:
        known = self._after == "root" or self._conversation.get(self._after) is not None
        previous = self._conversation.add(item, self._after if known else None)
        self._after = item.id
        return ItemAdded(item, previous, self.turn)

    def _complete(self, item: Item) -> ItemDone:
        if self._conversation.get(item.id) is None:  # deleted by the client while it was being made
            return ItemDone(item, None, self.turn)
        item = self._conversation.update(item)
        self._done.append(item)
        return ItemDone(item, self._conversation.previous_id(item.id), self.turn)

    def _said(self, heard_ms: float | None) -> tuple[Part, ...]:
        ledger = self.ledger
        if not self._spoke:
            return (TextPart(ledger.text if heard_ms is None else ledger.text[: ledger.sent_chars]),)
        return (replace(ledger.until(ledger.spoken_ms if heard_ms is None else heard_ms), rate=self._rate),)


class RecentResponses:
    """The latest answers of a session, so that a client may still say how much of them was heard."""

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._by_turn: dict[str, Response] = {}

    @property
    def latest(self) -> Response | None:
        return next(reversed(self._by_turn.values()), None)

    def add(self, answer: Response) -> None:
        self._by_turn[answer.turn] = answer
        while len(self._by_turn) > self._keep:
            del self._by_turn[next(iter(self._by_turn))]

    def get(self, turn: str) -> Response | None:
        return self._by_turn.get(turn)

    def with_item(self, item_id: str) -> Response | None:
        """The answer that spoke the item."""
        return next((a for a in self._by_turn.values() if a.message is not None and a.message.id == item_id), None)
