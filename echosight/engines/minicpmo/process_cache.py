"""Tracks how much of its conversation the model of a process has read, and the steps that follow.

MiniCPM-o keeps its KV cache inside; the only operations are to append to it and to reset it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, ToolResult, UserTurn
from echosight.engines.llm.messages import recent_items
from echosight.engines.runtime.subprocess_pool import Process
from echosight.media import INPUT_SAMPLE_RATE, pcm_ms

CHUNK_BYTES = 2 * INPUT_SAMPLE_RATE
"""PCM16 of one second, which the models' audio encoder takes at a time."""

MAX_REPLAYED_TURNS = 10
"""Turns that are read again after a reset. The model is reset when it has read three times as many messages."""

Step = dict[str, Any]
"""One call of the model as JSON values; `WorkerLoop` in the process executes it."""


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """The beginning of a conversation. `voice_sample` is a voice to imitate, PCM16 at `INPUT_SAMPLE_RATE`."""

    voice_sample: bytes = b""
    instructions: str = ""
    language: str | None = None


class ProcessCache:
    """A process, the conversation it is assigned to, and a record of what its model has read."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.conversation_id: str | None = None
        self.last_used_s = 0.0
        """Time of the event loop's clock."""
        self.system_prompt = SystemPrompt()
        self.reset()

    def assign(self, conversation_id: str) -> None:
        """Use the process for this conversation from now on."""
        self.conversation_id = conversation_id
        self.system_prompt = SystemPrompt()
        self.reset()

    def unassign(self) -> None:
        """Make the process available to any conversation."""
        self.conversation_id = None
        self.reset()

    def reset(self) -> None:
        """Have the model begin again at the next `pending_steps`."""
        self._valid = False
        self._pid = self.process.pid
        self._cached_items: list[tuple[str, int]] = []
        self._turn_id: str | None = None
        self._turn_bytes = 0
        self._turn_images = 0
        self._reply: str | None = None
        self._messages = 0

    def has_full_chunk(self, turn: UserTurn) -> bool:
        """Whether at least a second of the turn's speech is unread."""
        read = self._turn_bytes if self._turn_id == turn.id else 0
        return len(turn.pcm) - read >= CHUNK_BYTES

    def reply_started(self) -> None:
        """Until the reply is complete, the length of the model's cache is unknown."""
        self._valid = False

    def reply_complete(self, reply: str) -> None:
        """The model's cache ends with `reply`; the conversation may add an item with that text."""
        self._valid = True
        self._reply = reply.strip()

    def pending_steps(
        self, conversation: Conversation, system_prompt: SystemPrompt, turn: UserTurn | None
    ) -> list[Step]:
        """The steps that bring the model to the conversation's items and the whole seconds of the pending `turn`.

        They begin with a reset where the model's cache is not a prefix of the conversation.
        """
        items = conversation.items
        if self._is_prefix(items, system_prompt, turn):
            steps: list[Step] = []
            rest = items[len(self._cached_items) :]
            if self._reply is not None:
                rest = rest[1:]
        else:
            self.reset()
            self.system_prompt, rest = system_prompt, recent_items(conversation, MAX_REPLAYED_TURNS)
            steps = [_reset_step(system_prompt)]
        for item in rest:
            steps += self._item_steps(item)
        self._cached_items, self._reply = [(item.id, item.version) for item in items], None
        if turn is not None:
            steps += self._turn_steps(turn)
        self._valid = True
        return steps

    def _is_prefix(self, items: Sequence[Item], system_prompt: SystemPrompt, turn: UserTurn | None) -> bool:
        """Whether the conversation continues what the model has read."""
        same_process = self._valid and self._pid == self.process.pid
        if not same_process or system_prompt != self.system_prompt or self._messages > 3 * MAX_REPLAYED_TURNS:
            return False
        if [(item.id, item.version) for item in items[: len(self._cached_items)]] != self._cached_items:
            return False
        following = items[len(self._cached_items)] if len(items) > len(self._cached_items) else None
        if self._reply is not None:
            return following is not None and following.role == "assistant" and following.text.strip() == self._reply
        if self._turn_id is not None:
            return self._turn_id == (following.id if following is not None else turn.id if turn is not None else None)
        return True

    def _turn_steps(self, turn: UserTurn) -> list[Step]:
        """The unread whole seconds of a pending turn, each with the images shown before its end."""
        self._turn_id = turn.id
        images = list(turn.to_item().parts_of(ImagePart))[self._turn_images :]
        steps = []
        pcm = turn.pcm
        while len(pcm) - self._turn_bytes >= CHUNK_BYTES:
            chunk = pcm[self._turn_bytes : self._turn_bytes + CHUNK_BYTES]
            steps.append(self._user_step(chunk, images, last=False))
        return steps

    def _user_step(self, pcm: bytes, images: list[ImagePart], *, last: bool) -> Step:
        """A step of the user's message; takes from `images` those shown by the end of `pcm`, or all with `last`."""
        self._turn_bytes += len(pcm)
        content: list[dict[str, str]] = []
        while images and (last or images[0].at_ms <= pcm_ms(self._turn_bytes)):
            content.append({"image": base64.b64encode(images.pop(0).frame.data).decode()})
            self._turn_images += 1
        if pcm:
            content.append({"pcm": base64.b64encode(pcm).decode()})
        return {"role": "user", "content": content, "last": last}

    def _item_steps(self, item: Item) -> list[Step]:
        steps = [] if item.role == "assistant" else self._message_steps(item)
        if item.role == "assistant" and item.text:
            steps = [{"role": "assistant", "text": item.text}]
        self._turn_id, self._turn_bytes, self._turn_images = None, 0, 0
        return steps

    def _message_steps(self, item: Item) -> list[Step]:
        """The steps of a user, tool or system item; without the beginning that was read during the turn."""
        self._messages += 1
        audio = next(item.parts_of(AudioPart), None)
        pcm = (audio.pcm if audio is not None else None) or b""
        images = list(item.parts_of(ImagePart))[self._turn_images :]
        steps: list[Step] = []
        while len(pcm) - self._turn_bytes > CHUNK_BYTES:
            chunk = pcm[self._turn_bytes : self._turn_bytes + CHUNK_BYTES]
            steps.append(self._user_step(chunk, images, last=False))
        tail = self._user_step(pcm[self._turn_bytes :], images, last=True)
        texts = [
            part.text if isinstance(part, TextPart) else part.output for part in item.parts_of(TextPart, ToolResult)
        ]
        if audio is not None and not audio.pcm and audio.transcript:
            texts.insert(0, audio.transcript)
        tail["content"] = [{"text": text} for text in texts if text] + tail["content"]
        return [*steps, tail] if tail["content"] else steps


def _reset_step(system_prompt: SystemPrompt) -> Step:
    return {
        "role": "reset",
        "system": system_prompt.instructions,
        "language": "zh" if (system_prompt.language or "").startswith("zh") else "en",
        "voice": base64.b64encode(system_prompt.voice_sample).decode(),
    }
