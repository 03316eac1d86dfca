"""What a client can say to a session (`Input`) and what a session can say back (`Output`).

Wires translate between these and messages; nothing else crosses the line. Times of the user's
speech are sample counts of the session's own stream at `HEARD_HZ`, never readings of a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from echosight.conversation import Item
from echosight.media import AudioChunk, ImageFrame, Transcript, Word
from echosight.options import GenerateOptions, SessionOptions

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
class Commit:
    """The user's turn is over. Refused as `input_audio_buffer_commit_empty` below `min_audio_ms` of speech
    when there is nothing else in it."""

    min_audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class ClearInput:
    """Forget the user's turn in progress."""


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer now. `interrupt`: stop an answer in progress first, instead of refusing.

    `conversation` False: an answer out of band, whose items are not kept. `input` replaces the history for it.
    """

    options: GenerateOptions | None = None
    interrupt: bool = False
    conversation: bool = True
    input: tuple[Item, ...] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the answer in progress: that of `turn`, or whichever there is. Refused where there is none if `strict`."""

    turn: str | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Played:
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
class Configure:
    """The session's options from now on, whole."""

    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Mark:
    """Comes back as `Marked` once everything before it has been taken in."""

    tag: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget the conversation."""


Input = (
    Audio | Image | Text | Commit | ClearInput | Respond | Cancel | Played | Truncate
    | AddItem | RemoveItem | RetrieveItem | Configure | Mark | Reset
)  # fmt: skip

# --- outputs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The first event of every session."""

    session_id: str
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Configured:
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Marked:
    """`answering`: the user's turn is over and its answer is being made."""

    tag: str
    answering: bool


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
class SilenceTimedOut:
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
class Heard:
    """What was understood of the user's turn so far; replaces what was said before of the same item."""

    item_id: str
    transcript: Transcript
    audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """The user's speech could not be transcribed."""

    item_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Level:
    """Probability of speech in the 512 samples before sample `at`; sent only where `SessionOptions.levels` is set."""

    at: int
    probability: float


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item entered the conversation; `turn` is the answer that it is part of."""

    item: Item
    previous_id: str | None
    turn: str | None = None


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item is complete, or as complete as it will be."""

    item: Item
    previous_id: str | None
    turn: str | None = None


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
class TurnStarted:
    """An answer begins. `user_item` is the item it answers, where there is one."""

    turn: str
    options: GenerateOptions
    user_item: Item | None = None
    metadata: Mapping[str, Any] | None = None
    conversation: bool = True


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer. With speech it is the transcript of what is spoken, and may run ahead of it."""

    turn: str
    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class SpeechDelta:
    """Speech of the answer. `words` are those that begin in it, timed from the answer's first sample."""

    turn: str
    item_id: str
    chunk: AudioChunk
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the JSON arguments of a function call."""

    turn: str
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
class TurnEnded:
    """The answer is over; every TurnStarted has exactly one.

    `reason` says why it was not completed: ``turn_detected`` (speech over it), ``client_cancelled``,
    ``max_output_tokens``, ``content_filter``, or an error code. `made_by` names the parts that made it.
    """

    turn: str
    outcome: Outcome
    reason: str | None = None
    items: tuple[Item, ...] = ()
    usage: Usage = field(default_factory=Usage)
    waterfall: Waterfall = field(default_factory=Waterfall)
    made_by: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Something went wrong and the session goes on. `reference` is the client's own id of the message at fault."""

    code: str
    message: str
    param: str | None = None
    reference: str | None = None


Output = (
    Opened | Configured | Marked | SpeechStarted | SpeechStopped | SilenceTimedOut | InputCleared | InputCommitted
    | Heard | NotUnderstood | Level | ItemAdded | ItemDone | ItemRemoved | ItemRetrieved | ItemTruncated
    | TurnStarted | TextDelta | SpeechDelta | ToolCallDelta | TurnEnded | Failure
)  # fmt: skip

Delta = TextDelta | SpeechDelta | ToolCallDelta
