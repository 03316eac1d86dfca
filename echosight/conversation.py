"""The conversation as data: the only truth about what was said, shown and heard.

Engines cache what they like, derived from it. Items are immutable; an edit replaces an item by one with a higher
version, so the part of an engine's cache that is still valid is the longest common prefix of (id, version).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, ImageFrame, Word, pcm_ms

__all__ = [
    "AudioPart",
    "Conversation",
    "ImagePart",
    "Item",
    "Part",
    "Role",
    "Status",
    "TextPart",
    "ToolCall",
    "ToolResult",
    "UserTurn",
    "new_id",
    "pcm_part",
    "to_chunk",
]

Role = Literal["system", "user", "assistant", "tool"]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Typed or written text."""

    text: str


@dataclass(frozen=True, slots=True)
class AudioPart:
    """Speech. Of a user: what was recorded, with its transcript. Of the assistant: what was spoken.

    `pcm` is mono PCM16 at `rate` Hz, or None where the bytes were dropped or never kept (`duration_ms` stays true).
    `transcript` is None while unknown. `words` are timed in ms from the first sample.
    """

    pcm: bytes | None
    rate: int = INPUT_SAMPLE_RATE
    duration_ms: int = 0
    transcript: str | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image shown `at_ms` into the audio of its item (0 where there is no audio).

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
    """PCM16 at `INPUT_SAMPLE_RATE` as a part of a user's turn."""
    return AudioPart(pcm, duration_ms=pcm_ms(len(pcm)), transcript=transcript)


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
        """Everything that is said or written in it, as plain text."""
        texts = (p.text if isinstance(p, TextPart) else p.transcript or "" for p in self.parts_of(TextPart, AudioPart))
        return " ".join(text for text in texts if text)

    @property
    def audio(self) -> AudioPart | None:
        """Its speech: an item holds at most one audio part."""
        return next(self.parts_of(AudioPart), None)

    @property
    def needs_transcript(self) -> bool:
        """Whether it holds speech of the user that was not transcribed."""
        audio = self.audio
        return self.role == "user" and audio is not None and audio.pcm is not None and audio.transcript is None

    @property
    def images(self) -> tuple[ImageFrame, ...]:
        return tuple(p.frame for p in self.parts_of(ImagePart))

    def parts_of(self, *kinds: type[Any]) -> Iterator[Any]:
        """Its parts of the given kinds, in order."""
        return (p for p in self.parts if isinstance(p, kinds))


class UserTurn:
    """The user's turn while it is still going on. It grows in place; `to_item` freezes it."""

    def __init__(self, item_id: str | None = None) -> None:
        self.id = item_id or new_id("item")
        self._pcm = bytearray()
        self._other_parts: list[Part] = []

    def __bool__(self) -> bool:
        return bool(self._pcm or self._other_parts)

    @property
    def duration_ms(self) -> int:
        """Milliseconds of speech so far."""
        return pcm_ms(len(self._pcm))

    @property
    def has_images_or_text(self) -> bool:
        return any(
            isinstance(part, ImagePart) or (isinstance(part, TextPart) and part.text) for part in self._other_parts
        )

    @property
    def pcm(self) -> bytes:
        """The speech so far, PCM16 at `INPUT_SAMPLE_RATE`."""
        return bytes(self._pcm)

    @classmethod
    def from_item(cls, item: Item) -> UserTurn:
        """A turn of an item's parts, to have its speech transcribed."""
        turn = cls(item.id)
        for part in item.parts:
            turn.add(part)
        return turn

    def add(self, part: Part) -> Part:
        """Append speech, an image or text; returns the part with its place in the turn."""
        if isinstance(part, AudioPart):
            self._pcm += part.pcm or b""
            return part
        if isinstance(part, ImagePart):
            part = replace(part, at_ms=part.at_ms or self.duration_ms)
        self._other_parts.append(part)
        return part

    def to_item(self, transcript: str | None = None) -> Item:
        """The turn as an item: its speech first, then images and text in the order in which they came."""
        audio = (AudioPart(bytes(self._pcm), INPUT_SAMPLE_RATE, self.duration_ms, transcript),) if self._pcm else ()
        return Item("user", (*audio, *self._other_parts), self.id)


@dataclass(slots=True)
class Conversation:
    """Everything that a model needs to go on with a conversation. `to_json` and `from_json` are exact inverses.

    `pending_turn` is the user's turn in progress: it is no item yet and is not serialised.
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
        index = self._index(item_id)
        return self.items[index - 1].id if index else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item behind the one called `after` (``"root"``: at the front; None: at the end).

        Returns the id of the item now before it. Raises KeyError if `after` is unknown or the id is taken.
        """
        if self.get(item.id) is not None:
            raise KeyError(item.id)
        index = len(self.items) if after is None else 0 if after == "root" else self._index(after) + 1
        self.items.insert(index, item)
        return self.items[index - 1].id if index else None

    def update(self, item: Item) -> Item:
        """Put a changed item in place of the one with its id, under a new version."""
        index = self._index(item.id)
        item = replace(item, version=self.items[index].version + 1)
        self.items[index] = item
        return item

    def set_transcript(self, item_id: str, transcript: str) -> None:
        """Set what the speech of an item says. The speech does not change by it, so the version does not either.

        Does nothing where the item was deleted meanwhile.
        """
        item = self.get(item_id)
        if item is not None and (audio := item.audio) is not None:
            self._replace_part(item, audio, replace(audio, transcript=transcript))

    def remove(self, item_id: str) -> Item:
        """Take an item out. Raises KeyError if there is none of that id."""
        return self.items.pop(self._index(item_id))

    def trim_media(self, keep_ms: int, keep_image_bytes: int) -> None:
        """Bound the memory of a long conversation: drop the oldest raw speech and the oldest images.

        At most `keep_ms` of speech stay. The transcript stays, so the content and the version do not change; speech
        without a transcript is kept. Images beyond `keep_image_bytes` are removed, which is an edit.
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
        """Replace a part by another of the same content."""
        parts = tuple(new if part is old else part for part in item.parts)
        self.items[self._index(item.id)] = replace(item, parts=parts)

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self.items):
            if item.id == item_id:
                return index
        raise KeyError(item_id)


_PARTS: dict[str, type[Part]] = {
    "text": TextPart,
    "audio": AudioPart,
    "image": ImagePart,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
}
_NAMES = {kind: name for name, kind in _PARTS.items()}


def _to_jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, ImageFrame | Word):
        return {f.name: _to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_to_jsonable(v) for v in value]
    return value


def _item_to_json(item: Item) -> dict[str, Any]:
    parts = [
        {"kind": _NAMES[type(p)], **{f.name: _to_jsonable(getattr(p, f.name)) for f in fields(p)}} for p in item.parts
    ]
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
