"""One process of MiniCPM-o, and what its model has read: it can be told more, or to begin again, and nothing else."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolResult, UserTurn
from echosight.engines.llm.messages import recent_items
from echosight.engines.runtime.subprocess_pool import Process
from echosight.media import INPUT_SAMPLE_RATE

CHUNK_BYTES = 2 * INPUT_SAMPLE_RATE
"""A second: what the models' audio encoder takes at a time."""

TURNS = 10
"""Turns that are read again where the model has to begin again; at the latest when it has read three times as many."""

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Voice:
    """How a conversation begins for the model. `sample` is a voice to imitate, PCM16 at `INPUT_SAMPLE_RATE`."""

    sample: bytes = b""
    system: str = ""
    language: str | None = None


class Seat:
    """Its place in a conversation is data here; `steps` says what the process has to read to be there."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.conversation: str | None = None
        self.used = 0.0
        self.voice = Voice()
        self.blank()

    def take(self, conversation_id: str) -> None:
        self.conversation = conversation_id
        self.voice = Voice()
        self.blank()

    def leave(self) -> None:
        self.conversation = None
        self.blank()

    def blank(self) -> None:
        """Whatever the model has read, it will begin again."""
        self._valid = False
        self._pid = self.process.pid
        self._kept: list[tuple[str, int]] = []
        self._turn: str | None = None
        self._bytes = 0
        self._images = 0
        self._reply: str | None = None
        self._read = 0

    def due(self, turn: UserTurn) -> bool:
        """Whether there is a whole second of the turn to read."""
        read = self._bytes if self._turn == turn.id else 0
        return len(turn.pcm) - read >= CHUNK_BYTES

    def answering(self) -> None:
        self._valid = False

    def answered(self, reply: str) -> None:
        """The model has said this, and an item that says the same may claim it."""
        self._valid = True
        self._reply = reply.strip()

    def steps(self, conversation: Conversation, voice: Voice, turn: UserTurn | None) -> list[Step]:
        """What is to be read of the conversation's items and of the open turn, from the beginning if need be."""
        items = conversation.items
        if self._follows(items, voice, turn):
            steps: list[Step] = []
            rest = items[len(self._kept) :]
            if self._reply is not None:
                rest = rest[1:]
        else:
            self.blank()
            self.voice, rest = voice, recent_items(conversation, TURNS)
            sample = base64.b64encode(voice.sample).decode()
            language = "zh" if (voice.language or "").startswith("zh") else "en"
            steps = [{"role": "reset", "system": voice.system, "language": language, "voice": sample}]
        for item in rest:
            steps += self._item(item)
        self._kept, self._reply = [(item.id, item.version) for item in items], None
        if turn is not None:
            steps += self._open(turn)
        self._valid = True
        return steps

    def _follows(self, items: list[Item], voice: Voice, turn: UserTurn | None) -> bool:
        """Whether the model's place is on the way to where the conversation is now."""
        if not self._valid or voice != self.voice or self._pid != self.process.pid or self._read > 3 * TURNS:
            return False
        kept = [(item.id, item.version) for item in items[: len(self._kept)]]
        if kept != self._kept:
            return False
        following = items[len(self._kept)] if len(items) > len(self._kept) else None
        if self._reply is not None:
            return following is not None and following.role == "assistant" and following.text.strip() == self._reply
        if self._turn is not None:
            return self._turn == (following.id if following is not None else turn.id if turn is not None else None)
        return True

    def _open(self, turn: UserTurn) -> list[Step]:
        """Whole seconds of it, with the pictures shown before each one's end."""
        self._turn = turn.id
        item = turn.to_item()
        shown = list(item.parts_of(ImagePart))[self._images :]
        steps = []
        pcm = turn.pcm
        while len(pcm) - self._bytes >= CHUNK_BYTES:
            steps.append(self._chunk(pcm[self._bytes : self._bytes + CHUNK_BYTES], shown, last=False))
        return steps

    def _chunk(self, pcm: bytes, shown: list[ImagePart], *, last: bool) -> Step:
        self._bytes += len(pcm)
        content: list[dict[str, str]] = []
        while shown and (last or shown[0].at_ms * (INPUT_SAMPLE_RATE // 500) <= self._bytes):
            content.append({"image": base64.b64encode(shown.pop(0).frame.data).decode()})
            self._images += 1
        if pcm:
            content.append({"pcm": base64.b64encode(pcm).decode()})
        return {"role": "user", "content": content, "last": last}

    def _item(self, item: Item) -> list[Step]:
        steps = [] if item.role == "assistant" else self._message(item)
        if item.role == "assistant" and item.text:
            steps = [{"role": "assistant", "text": item.text}]
        self._turn, self._bytes, self._images = None, 0, 0
        return steps

    def _message(self, item: Item) -> list[Step]:
        """A message of the user, or what is left of it to be read."""
        self._read += 1
        audio = next(item.parts_of(AudioPart), None)
        pcm = (audio.pcm if audio is not None else None) or b""
        shown = list(item.parts_of(ImagePart))[self._images :]
        steps: list[Step] = []
        while len(pcm) - self._bytes > CHUNK_BYTES:
            steps.append(self._chunk(pcm[self._bytes : self._bytes + CHUNK_BYTES], shown, last=False))
        tail = self._chunk(pcm[self._bytes :], shown, last=True)
        texts = [
            part.text if isinstance(part, TextPart) else part.output for part in item.parts_of(TextPart, ToolResult)
        ]
        if audio is not None and not audio.pcm and audio.transcript:
            texts.insert(0, audio.transcript)
        tail["content"] = [{"text": text} for text in texts if text] + tail["content"]
        return [*steps, tail] if tail["content"] else steps
