"""The conversation as data: the only truth about what was said, shown and heard.

Whatever an engine caches is derived from it. Items are immutable; an edit replaces an item by one
with a higher version, so an engine finds the part of its cache that still holds as the longest
common prefix of `Conversation.signature()`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, ImageFrame, Word

Role = Literal["system", "user", "assistant", "tool"]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Typed or written text."""

    text: str


@dataclass(frozen=True, slots=True)
class AudioPart:
    """Speech. Of a user: what was heard, with its transcript. Of the assistant: what was spoken.

    `pcm` is mono PCM16 at `rate` Hz, or None once the bytes were let go or were never kept
    (`duration_ms` stays true). `transcript` is None while unknown.
    """

    pcm: bytes | None
    rate: int = INPUT_SAMPLE_RATE
    duration_ms: int = 0
    transcript: str | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture shown `at_ms` into the audio of its item (0 where there is no audio).

    `detail` is ``low``, ``high`` or ``auto``: how closely a model should look.
    """

    frame: ImageFrame
    at_ms: int = 0
    detail: str = "auto"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant asks for a function. `arguments` is JSON text, as the model wrote it."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the client's function returned."""

    call_id: str
    output: str


def pcm_part(pcm: bytes, transcript: str | None = None) -> AudioPart:
    """PCM16 at `INPUT_SAMPLE_RATE` as a part of what a user says."""
    return AudioPart(pcm, duration_ms=len(pcm) * 500 // INPUT_SAMPLE_RATE, transcript=transcript)


Part = TextPart | AudioPart | ImagePart | ToolCall | ToolResult


def new_id(kind: str) -> str:
    """A fresh opaque id such as ``item_9f2c…``."""
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass(frozen=True, slots=True)
class Item:
    """One contribution to the conversation."""

    role: Role
    parts: tuple[Part, ...]
    id: str = field(default_factory=lambda: new_id("item"))
    version: int = 0
    status: Status = "completed"

    @property
    def text(self) -> str:
        """All that was said or written in it, as plain text."""
        said = (p.text if isinstance(p, TextPart) else p.transcript or "" for p in self.parts_of(TextPart, AudioPart))
        return " ".join(s for s in said if s)

    @property
    def audio(self) -> AudioPart | None:
        """Its speech: an item holds at most one audio part."""
        return next(self.parts_of(AudioPart), None)

    @property
    def needs_transcript(self) -> bool:
        """Whether it holds speech of the user whose words are not known."""
        audio = self.audio
        return self.role == "user" and audio is not None and audio.pcm is not None and audio.transcript is None

    @property
    def images(self) -> tuple[ImageFrame, ...]:
        return tuple(p.frame for p in self.parts_of(ImagePart))

    def parts_of(self, *kinds: type[Any]) -> Iterator[Any]:
        """Its parts of the given kinds, in order."""
        return (p for p in self.parts if isinstance(p, kinds))


class UserTurn:
    """The user's turn while it is still going on. Grows in place; `close` freezes it into an `Item`."""

    def __init__(self, item_id: str | None = None) -> None:
        self.id = item_id or new_id("item")
        self._pcm = bytearray()
        self._rest: list[Part] = []

    def __bool__(self) -> bool:
        return bool(self._pcm or self._rest)

    @property
    def duration_ms(self) -> int:
        """Milliseconds of speech so far."""
        return len(self._pcm) * 500 // INPUT_SAMPLE_RATE

    @property
    def pcm(self) -> bytes:
        """The speech so far, PCM16 at `INPUT_SAMPLE_RATE`."""
        return bytes(self._pcm)

    @classmethod
    def from_item(cls, item: Item) -> UserTurn:
        """An item as the turn it was, for instance to have its speech transcribed."""
        turn = cls(item.id)
        for part in item.parts:
            turn.add(part)
        return turn

    def add(self, part: Part) -> Part:
        """Append speech, a picture or text; returns the part as it was placed."""
        if isinstance(part, AudioPart):
            self._pcm += part.pcm or b""
            return part
        if isinstance(part, ImagePart):
            part = replace(part, at_ms=part.at_ms or self.duration_ms)
        self._rest.append(part)
        return part

    def to_item(self, transcript: str | None = None) -> Item:
        """The turn as an item: its speech first, then pictures and text in the order they came."""
        audio = (AudioPart(bytes(self._pcm), INPUT_SAMPLE_RATE, self.duration_ms, transcript),) if self._pcm else ()
        return Item("user", (*audio, *self._rest), self.id)


@dataclass(slots=True)
class Conversation:
    """Everything a model needs to go on with a talk. `to_json` and `from_json` are exact inverses.

    `open` is the user's turn in progress: it is no item yet and is not serialised.
    """

    id: str = field(default_factory=lambda: new_id("conv"))
    instructions: str = ""
    language: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    items: list[Item] = field(default_factory=list)
    pending_turn: UserTurn | None = None

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def get(self, item_id: str) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)

    def previous_id(self, item_id: str) -> str | None:
        """The id of the item before `item_id`, None for the first."""
        at = self._index(item_id)
        return self.items[at - 1].id if at else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item behind the one called `after` (``"root"``: at the front; None: at the end).

        Returns the id of the item now before it. Raises KeyError if `after` is unknown or the id is taken.
        """
        if self.get(item.id) is not None:
            raise KeyError(item.id)
        at = len(self.items) if after is None else 0 if after == "root" else self._index(after) + 1
        self.items.insert(at, item)
        return self.items[at - 1].id if at else None

    def update(self, item: Item) -> Item:
        """Put a changed item in place of the one with its id, under a new version."""
        at = self._index(item.id)
        item = replace(item, version=self.items[at].version + 1)
        self.items[at] = item
        return item

    def transcribed(self, item_id: str, transcript: str) -> None:
        """Note what the speech of an item says. What was said does not change by it, so its version does not either.

        An item that is gone by now is left gone.
        """
        item = self.get(item_id)
        if item is not None and (audio := item.audio) is not None:
            self._replace_part(item, audio, replace(audio, transcript=transcript))

    def remove(self, item_id: str) -> Item:
        """Take an item out. Raises KeyError if there is none of that id."""
        return self.items.pop(self._index(item_id))

    def trim_media(self, keep_ms: int, keep_image_bytes: int) -> None:
        """Bound the memory that a long talk takes: forget the oldest raw speech and the oldest pictures.

        At most `keep_ms` of speech stay; its transcript stays, so that what was said does not change and versions do
        not either. Speech without a transcript is kept. Pictures beyond `keep_image_bytes` go for good: an edit.
        """
        for item in reversed(self.items.copy()):
            audio = item.audio
            if audio is not None and audio.pcm is not None:
                keep_ms -= audio.duration_ms
                if keep_ms < 0 and audio.transcript is not None:
                    self._replace_part(item, audio, replace(audio, pcm=None))
            size = sum(len(image.data) for image in item.images)
            keep_image_bytes -= size
            if size and keep_image_bytes < 0:
                rest = tuple(p for p in self.items[self._index(item.id)].parts if not isinstance(p, ImagePart))
                self.update(replace(item, parts=rest))

    def signature(self) -> tuple[tuple[str, int], ...]:
        """What an engine compares its cache with: (id, version) of each item, in order."""
        return tuple((item.id, item.version) for item in self.items)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; bytes as base64."""
        return {
            "id": self.id,
            "instructions": self.instructions,
            "language": self.language,
            "tools": list(self.tools),
            "items": [_item_to_json(item) for item in self.items],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Conversation:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            id=data["id"],
            instructions=data["instructions"],
            language=data["language"],
            tools=tuple(data["tools"]),
            items=[_item_from_json(item) for item in data["items"]],
        )

    def _replace_part(self, item: Item, old: Part, new: Part) -> None:
        """Put a part in place of another that says the same."""
        parts = tuple(new if part is old else part for part in item.parts)
        self.items[self._index(item.id)] = replace(item, parts=parts)

    def _index(self, item_id: str) -> int:
        for at, item in enumerate(self.items):
            if item.id == item_id:
                return at
        raise KeyError(item_id)


_PARTS: dict[str, type[Part]] = {
    "text": TextPart,
    "audio": AudioPart,
    "image": ImagePart,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
}
_NAMES = {kind: name for name, kind in _PARTS.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, ImageFrame | Word):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _item_to_json(item: Item) -> dict[str, Any]:
    parts = [{"kind": _NAMES[type(p)], **{f.name: _plain(getattr(p, f.name)) for f in fields(p)}} for p in item.parts]
    return {"id": item.id, "version": item.version, "role": item.role, "status": item.status, "parts": parts}


def _item_from_json(data: dict[str, Any]) -> Item:
    return Item(data["role"], tuple(_parts_from_json(data["parts"])), data["id"], data["version"], data["status"])


def _parts_from_json(parts: Iterable[dict[str, Any]]) -> Iterator[Part]:
    for part in parts:
        values = {k: v for k, v in part.items() if k != "kind"}
        if part["kind"] == "audio":
            values["pcm"] = None if values["pcm"] is None else base64.b64decode(values["pcm"])
            values["words"] = tuple(Word(**w) for w in values["words"])
        if part["kind"] == "image":
            frame = values["frame"]
            values["frame"] = ImageFrame(**{**frame, "data": base64.b64decode(frame["data"])})
        yield _PARTS[part["kind"]](**values)


def to_chunk(part: AudioPart) -> AudioChunk:
    """The part's samples as a chunk; empty where the bytes were let go."""
    return AudioChunk(part.pcm or b"", part.rate)
