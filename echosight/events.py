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

__all__ = [
    "AddItem",
    "Audio",
    "Cancel",
    "ClearInput",
    "CommitInput",
    "CreateResponse",
    "Delta",
    "ErrorRaised",
    "IdleTimedOut",
    "Image",
    "Input",
    "InputCleared",
    "InputCommitted",
    "ItemAdded",
    "ItemDone",
    "ItemRemoved",
    "ItemRetrieved",
    "ItemTruncated",
    "OptionsUpdated",
    "Outcome",
    "Output",
    "PlaybackProgress",
    "RemoveItem",
    "Reset",
    "ResponseEnded",
    "ResponseStarted",
    "RetrieveItem",
    "SessionOpened",
    "SpeechDelta",
    "SpeechStarted",
    "SpeechStopped",
    "Sync",
    "Synced",
    "Text",
    "TextDelta",
    "ToolCallDelta",
    "TranscriptUpdated",
    "TranscriptionFailed",
    "Truncate",
    "UpdateOptions",
    "Usage",
    "VadLevel",
    "Waterfall",
]

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
    """The user's turn is over. Refused as `input_audio_buffer_commit_empty` where it holds less than `min_audio_ms` of
    speech and nothing else."""

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
    """Cancel the response of that id, or the one in progress. Refused where there is none if `strict`."""

    response_id: str | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class PlaybackProgress:
    """The client has played `audio_ms` of the assistant's item so far."""

    item_id: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the assistant's item to the words that begin within `audio_ms` of its speech."""

    item_id: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class AddItem:
    """Add an item to the conversation, behind `after` (``"root"``: at the front; None: at the end)."""

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
    """The session answers with `Synced` once it has taken in every input before this one."""

    tag: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Delete all items of the conversation."""


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
    """The answer to a `Sync`. `generating`: a response is generated on the conversation."""

    tag: str
    generating: bool


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user's turn began at sample `at` of the session's audio, pre-roll included."""

    item_id: str
    at: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The user's turn ended; its last speech was at sample `at`."""

    item_id: str
    at: int


@dataclass(frozen=True, slots=True)
class IdleTimedOut:
    """The user was silent from sample `start` to sample `end`; the silence becomes a turn of its own."""

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
    """The transcript of the user's turn so far; it replaces earlier ones of the same item."""

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
    """Probability of speech in the 512 samples before sample `at`; sent where `SessionOptions.vad_levels` is set."""

    at: int
    probability: float


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item was added to the conversation; `response_id` is that of the response that it is part of."""

    item: Item
    previous_id: str | None
    response_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item will not grow any more: it is complete, or was cut off."""

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
    """The assistant's item was cut to what was played; `text` remains.

    `requested`: the client asked for it; otherwise the session cut it by its own account of what was played.
    """

    item_id: str
    audio_ms: int
    text: str
    requested: bool


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    """A response begins. `user_item` is the user's item that it responds to, where there is one."""

    response_id: str
    options: GenerateOptions
    user_item: Item | None = None
    metadata: Mapping[str, Any] | None = None
    conversation: bool = True


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the response. With speech it is the transcript of what is spoken, and may run ahead of it."""

    response_id: str
    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class SpeechDelta:
    """Speech of the response. `words` are those that begin in it, timed from the first sample of the response."""

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
    """When each stage of a response was reached, in ms after the end of the user's speech; None: not (yet) reached.

    Filled in while the response runs: `first_byte` once the client was sent the first speech.
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
    """The response is over; every `ResponseStarted` has exactly one.

    `reason` is why it was not completed: ``turn_detected`` (speech over it), ``client_cancelled``,
    ``max_output_tokens``, ``content_filter``, or an error code. `providers` are the names of the parts that made it.
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
    """An input was refused, or something failed; the session goes on.

    `client_event_id` is the client's own id of the message that caused it.
    """

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
