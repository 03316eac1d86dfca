"""Renders a conversation with the model's own chat template into the tokens and images of a prompt."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from echosight.conversation import Conversation, ToolCall
from echosight.engines.llm.messages import Message, nest_function, recent_items, to_messages
from echosight.engines.llm.transformers.output_parser import MARKERS
from echosight.errors import EngineFailure
from echosight.media import ImageFrame

MAX_IMAGE_SIDE = 1024
"""Pixels. Larger images are scaled down: they cost tokens in proportion to their area and add little."""

MAX_CACHED_IMAGES = 32
"""Images whose preprocessed tensors are kept."""

CacheKey = int | tuple[str, int]
"""Identity of a token in a KV cache: the token id, or (hash, n) for the nth token of an image."""


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """Consecutive tokens of a prompt: text, or one image.

    An image has the tensors of its processor (``pixel_values`` and so on, on the CPU) and `image_hash`, which is empty
    for text.
    """

    ids: tuple[int, ...]
    image_hash: str = ""
    tensors: dict[str, Any] | None = None

    @property
    def cache_keys(self) -> list[CacheKey]:
        """One for each token."""
        return [(self.image_hash, n) for n in range(len(self.ids))] if self.image_hash else [*self.ids]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A conversation to reply to. `system` holds the instructions; the reply is forced to begin with `reply_prefix`."""

    conversation: Conversation
    system: str
    tools: tuple[dict[str, Any], ...] = ()
    reply_prefix: str = ""


class ChatTemplate:
    """A model's chat template. `processor` is None for a model without vision.

    Control tokens are removed from the texts of users and functions, so that these cannot end a message or begin
    another (prompt injection by special tokens).
    """

    def __init__(self, tokenizer: Any, processor: Any, max_turns: int) -> None:
        self._tokenizer = tokenizer
        self._processor = processor
        self._max_turns = max_turns
        self._images: OrderedDict[str, PromptSegment] = OrderedDict()
        self.template: str = getattr(processor, "chat_template", None) or tokenizer.get_chat_template()
        self.image_token = (getattr(processor, "boi_token", None) or processor.image_token) if processor else None
        control = {*tokenizer.all_special_tokens, *MARKERS, *filter(None, [self.image_token])}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))

    @property
    def calls_in_tags(self) -> bool:
        """Whether the model writes its function calls in ``<tool_call>``."""
        return "<tool_call>" in self.template

    def prompt(self, request: PromptRequest, max_tokens: int) -> tuple[str, list[PromptSegment]]:
        """The prompt as text and as segments of at most `max_tokens` together; drops the oldest whole turns to fit.

        Raises `EngineFailure` ``context_length_exceeded`` where even the last turn is too long.
        """
        turns = visible_turns(request.conversation, self._max_turns)
        while True:
            text = self._render(request, turns, generation_prompt=True) + request.reply_prefix
            segments = self._tokenize(text, self._frames(request, turns))
            if sum(len(segment.ids) for segment in segments) <= max_tokens:
                return text, segments
            if turns <= 1:
                raise EngineFailure("The turn is longer than the model's context", code="context_length_exceeded")
            turns //= 2

    def stable_prefix(self, request: PromptRequest, partial: str) -> list[PromptSegment]:
        """The beginning of the prompt that stays the same while the last item, the user's, grows behind `partial`.

        Empty where `partial` does not occur in the rendered prompt.
        """
        turns = visible_turns(request.conversation, self._max_turns)
        text = self._render(request, turns, generation_prompt=False)
        partial = self._control.sub("", partial)
        start = text.rfind(partial)
        if not partial or start < 0:
            return []
        prefix = text[: start + len(partial)]
        *segments, last = self._tokenize(prefix, self._frames(request, turns)) or [PromptSegment(())]
        # With more text behind it, the tokenizer may merge the last token into a longer one.
        return [*segments, replace(last, ids=last.ids[:-1])] if not last.image_hash else [*segments, last]

    def _frames(self, request: PromptRequest, turns: int) -> list[ImageFrame]:
        items = recent_items(request.conversation, turns) if self.image_token else []
        return [frame for item in items if not any(item.parts_of(ToolCall)) for frame in item.images]

    def _render(self, request: PromptRequest, turns: int, generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        rendered = [
            self._for_template(message)
            for message in to_messages(
                request.conversation,
                instructions=request.system,
                max_turns=turns,
                images=self.image_token is not None,
            )
        ]
        try:
            return self._apply(rendered, request, generation_prompt)
        except TemplateError:
            # Some templates reject system messages, others require alternating roles.
            return self._apply(_alternate_roles(rendered), request, generation_prompt)

    def _apply(self, rendered: list[Message], request: PromptRequest, generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            rendered,
            tools=[nest_function(tool) for tool in request.tools] or None,
            chat_template=self.template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            # Long reasoning delays a spoken reply. Templates ignore variables that they do not use.
            enable_thinking=False,
            reasoning_effort="low",
        )
        return text

    def _for_template(self, message: Message) -> Message:
        """The message without control tokens; templates of vision models expect the content as a list."""
        content = message["content"] or ""
        if isinstance(content, str):
            content = self._control.sub("", content)
            if self.image_token and message["role"] != "tool":
                content = [{"type": "text", "text": content}]
        else:
            content = [
                {"type": "image"}
                if part["type"] == "image_url"
                else {**part, "text": self._control.sub("", part["text"])}
                for part in content
            ]
        if "tool_calls" not in message:
            return {**message, "content": content}
        return {**message, "content": content, "tool_calls": [_parse_arguments(call) for call in message["tool_calls"]]}

    def _tokenize(self, text: str, frames: Sequence[ImageFrame]) -> list[PromptSegment]:
        texts = text.split(self.image_token) if self.image_token and frames else [text]
        if len(texts) != len(frames) + 1:
            raise EngineFailure("The model's chat template leaves images out")
        segments = []
        for n, between in enumerate(texts):
            if ids := tuple(self._tokenizer(between, add_special_tokens=False)["input_ids"]):
                segments.append(PromptSegment(ids))
            if n < len(frames):
                segments.append(self._image_segment(frames[n]))
        return segments

    def _image_segment(self, frame: ImageFrame) -> PromptSegment:
        image_hash = hashlib.blake2b(frame.data, digest_size=16).hexdigest()
        segment = self._images.pop(image_hash, None) or self._preprocess(frame, image_hash)
        self._images[image_hash] = segment
        if len(self._images) > MAX_CACHED_IMAGES:
            self._images.popitem(last=False)
        return segment

    def _preprocess(self, frame: ImageFrame, image_hash: str) -> PromptSegment:
        with Image.open(io.BytesIO(frame.data)) as file:
            file.draft("RGB", (MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
            image = file.convert("RGB")
        image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
        inputs = self._processor(text=[self.image_token], images=[image], return_tensors="pt", add_special_tokens=False)
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        return PromptSegment(tuple(ids), image_hash, dict(inputs))


def visible_turns(conversation: Conversation, max_turns: int) -> int:
    """How many of the user's last turns the prompt shows: at most `max_turns`; the oldest half is dropped at once.

    Dropping one with each turn would change the beginning of every prompt, and the whole prompt would have to be
    computed again each time.
    """
    turns = sum(item.role == "user" for item in conversation.items)
    if turns <= max_turns:
        return max_turns
    stride = max(1, max_turns // 2)
    return turns - -(-(turns - max_turns) // stride) * stride


def _parse_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object: templates serialize them to JSON themselves."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _alternate_roles(rendered: list[Message]) -> list[Message]:
    """The messages with alternating roles: system messages become the user's, neighbours of one role are merged."""
    merged: list[Message] = []
    for message in rendered:
        role = "assistant" if message["role"] == "assistant" else "user"
        content = message["content"]
        if merged and merged[-1]["role"] == role:
            before = merged[-1]["content"]
            between = [] if isinstance(before, list) else "\n\n"
            merged[-1] = {"role": role, "content": before + between + content}
        else:
            merged.append({"role": role, "content": content})
    return merged
