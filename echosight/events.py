"""What a client can say to a session (`Input`) and what a session can say back (`Output`).

Wires translate between these and messages; nothing else crosses the line. Times of the user's
speech are sample counts of the session's own stream at `INPUT_SAMPLE_RATE`, never readings of a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from echosight.conversation import Item
from echosight.media import AudioChunk, ImageFrame, Transcript, Word
from echosight.options import GenerateChanges, GenerateOptions, SessionChanges, SessionOptions

# --- inputs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audio:
    """A piece of microphone audio, any length and rate."""

    chunk: AudioChunk


@dataclass(frozen=True, slots=True)
class Image:
    """A camera frame, or a picture, that belongs to the user's turn in progress."""

    frame: ImageFrame


@dataclass(frozen=True, slots=True)
class Text:
    """Typed input that belongs to the user's turn in progress."""

    text: str


@dataclass(frozen=True, slots=True)
class CommitInput:
    """The user's turn is over. Refused as `input_audio_buffer_commit_empty` below `min_audio_ms` of speech
    when there is nothing else in it."""

    min_audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class ClearInput:
    """Forget the user's turn in progress."""


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """Respond now. `interrupt`: cancel a response in progress first, instead of refusing.

    `changes` are made to the session's response options for this response only. `conversation` False: a response out
    of band, whose items are not kept. `input` replaces the history for it.
    """

    changes: GenerateChanges | None = None
    interrupt: bool = False
    conversation: bool = True
    input: tuple[Item, ...] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the answer in progress: that of `turn`, or whichever there is. Refused where there is none if `strict`."""

    response_id: str | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class PlaybackProgress:
    """The client has played `audio_ms` of the assistant's item so far."""

    item_id: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the assistant's item to what is begun within `audio_ms` of its speech."""

    item_id: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class AddItem:
    """Put an item into the conversation, behind `after` (``"root"``: in front; None: at the end)."""

    item: Item
    after: str | None = None


@dataclass(frozen=True, slots=True)
class RemoveItem:
    item_id: str


@dataclass(frozen=True, slots=True)
class RetrieveItem:
    item_id: str


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """Changes of the session's options. The session answers with `OptionsUpdated`, all options as they then are."""

    changes: SessionChanges


@dataclass(frozen=True, slots=True)
class Sync:
    """Comes back as `Synced` once everything before it has been taken in."""

    tag: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget the conversation."""


Input = (
    Audio | Image | Text | CommitInput | ClearInput | CreateResponse | Cancel | PlaybackProgress | Truncate
    | AddItem | RemoveItem | RetrieveItem | UpdateOptions | Sync | Reset
)  # fmt: skip

# --- outputs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The first event of every session."""

    session_id: str
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class OptionsUpdated:
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Synced:
    """`answering`: the user's turn is over and its answer is being made."""

    tag: str
    generating: bool


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech began at sample `at` (pre-roll included) of the session's audio."""

    item_id: str
    at: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The user's turn ended; its last speech was at sample `at`."""

    item_id: str
    at: int


@dataclass(frozen=True, slots=True)
class IdleTimedOut:
    """The user has said nothing from sample `start` to sample `end`; the silence becomes a turn of its own."""

    item_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class InputCleared:
    pass


@dataclass(frozen=True, slots=True)
class InputCommitted:
    """The user's turn is over and becomes the item of that id."""

    item_id: str
    previous_id: str | None


@dataclass(frozen=True, slots=True)
class TranscriptUpdated:
    """What was understood of the user's turn so far; replaces what was said before of the same item."""

    item_id: str
    transcript: Transcript
    audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class TranscriptionFailed:
    """The user's speech could not be transcribed."""

    item_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class VadLevel:
    """Probability of speech in the 512 samples before sample `at`; sent only where `SessionOptions.levels` is set."""

    at: int
    probability: float


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item entered the conversation; `turn` is the answer that it is part of."""

    item: Item
    previous_id: str | None
    response_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item is complete, or as complete as it will be."""

    item: Item
    previous_id: str | None
    response_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemRemoved:
    item_id: str


@dataclass(frozen=True, slots=True)
class ItemRetrieved:
    item: Item


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """The assistant's item was cut to what was heard: `text` is left of it.

    `requested`: because the client said so, and not by the session's own account of what was played.
    """

    item_id: str
    audio_ms: int
    text: str
    requested: bool


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    """An answer begins. `user_item` is the item it answers, where there is one."""

    response_id: str
    options: GenerateOptions
    user_item: Item | None = None
    metadata: Mapping[str, Any] | None = None
    conversation: bool = True


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer. With speech it is the transcript of what is spoken, and may run ahead of it."""

    response_id: str
    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class SpeechDelta:
    """Speech of the answer. `words` are those that begin in it, timed from the answer's first sample."""

    response_id: str
    item_id: str
    chunk: AudioChunk
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the JSON arguments of a function call."""

    response_id: str
    item_id: str
    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Waterfall:
    """When each stage of a turn was reached, in ms after the end of the user's speech; None: not (yet) reached.

    Filled in while the turn runs: `first_byte` only once the first speech has left the outbox.
    """

    endpoint: float | None = None
    transcript: float | None = None
    first_text: float | None = None
    first_audio: float | None = None
    first_byte: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as far as the engine counts them."""

    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    cached: int = 0
    output_text: int = 0
    output_audio: int = 0


Outcome = Literal["completed", "cancelled", "failed", "incomplete"]


@dataclass(frozen=True, slots=True)
class ResponseEnded:
    """The answer is over; every TurnStarted has exactly one.

    `reason` says why it was not completed: ``turn_detected`` (speech over it), ``client_cancelled``,
    ``max_output_tokens``, ``content_filter``, or an error code. `made_by` names the parts that made it.
    """

    response_id: str
    outcome: Outcome
    reason: str | None = None
    items: tuple[Item, ...] = ()
    usage: Usage = field(default_factory=Usage)
    waterfall: Waterfall = field(default_factory=Waterfall)
    providers: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorRaised:
    """Something went wrong and the session goes on. `reference` is the client's own id of the message at fault."""

    code: str
    message: str
    param: str | None = None
    client_event_id: str | None = None


Output = (
    SessionOpened | OptionsUpdated | Synced | SpeechStarted | SpeechStopped | IdleTimedOut | InputCleared
    | InputCommitted | TranscriptUpdated | TranscriptionFailed | VadLevel | ItemAdded | ItemDone | ItemRemoved
    | ItemRetrieved | ItemTruncated | ResponseStarted | TextDelta | SpeechDelta | ToolCallDelta | ResponseEnded
    | ErrorRaised
)  # fmt: skip

Delta = TextDelta | SpeechDelta | ToolCallDelta
