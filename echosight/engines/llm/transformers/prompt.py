"""A conversation as the tokens and pictures that a model reads, by the model's own chat template."""

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
from echosight.engines.llm.messages import Message, messages, recent
from echosight.engines.llm.transformers.output_parser import MARKS
from echosight.errors import EngineFailure
from echosight.media import ImageFrame

LARGEST_SIDE = 1024
"""Pixels. A camera's picture needs no more to be understood, and costs as many tokens as it has pixels."""

PICTURES = 32
"""Pictures whose tensors are kept."""

Symbol = int | tuple[str, int]
"""What a place in the model's cache stands for: a token, or the nth place of a picture."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that are read in one go. Those of a picture come with its tensors, and with its `key`."""

    ids: tuple[int, ...]
    key: str = ""
    tensors: dict[str, Any] | None = None

    @property
    def symbols(self) -> list[Symbol]:
        return [(self.key, n) for n in range(len(self.ids))] if self.key else [*self.ids]


@dataclass(frozen=True, slots=True)
class Request:
    """What there is to answer. `forced` is what the reply has to begin with."""

    conversation: Conversation
    system: str
    tools: tuple[dict[str, Any], ...] = ()
    forced: str = ""


class Template:
    """A model's chat template. `processor` is that of a model which sees, None for one that only reads.

    What users and functions write cannot end a message or begin another: control tokens are taken out of it.
    """

    def __init__(self, tokenizer: Any, processor: Any, max_turns: int) -> None:
        self._tokenizer = tokenizer
        self._processor = processor
        self._max_turns = max_turns
        self._pictures: OrderedDict[str, Run] = OrderedDict()
        self.template: str = getattr(processor, "chat_template", None) or tokenizer.get_chat_template()
        self.mark = (getattr(processor, "boi_token", None) or processor.image_token) if processor else None
        control = {*tokenizer.all_special_tokens, *MARKS, *filter(None, [self.mark])}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))

    @property
    def calls_in_tags(self) -> bool:
        """Whether the model writes its function calls in ``<tool_call>``."""
        return "<tool_call>" in self.template

    def prompt(self, request: Request, room: int) -> tuple[str, list[Run]]:
        """The prompt of a reply, as text and as runs of at most `room` tokens: the oldest whole turns are left out.

        Raises `EngineFailure` ``context_length_exceeded`` where even the last turn is too long.
        """
        turns = kept_turns(request.conversation, self._max_turns)
        while True:
            text = self._render(request, turns, answer=True) + request.forced
            runs = self._read(text, self._frames(request, turns))
            if sum(len(run.ids) for run in runs) <= room:
                return text, runs
            if turns <= 1:
                raise EngineFailure("The turn is longer than the model's context", code="context_length_exceeded")
            turns //= 2

    def beginning(self, request: Request, said: str) -> list[Run]:
        """The prompt as far as it is sure while the last item, the user's, goes on after `said`."""
        turns = kept_turns(request.conversation, self._max_turns)
        text = self._render(request, turns, answer=False)
        said = self._control.sub("", said)
        at = text.rfind(said)
        if not said or at < 0:
            return []
        *runs, last = self._read(text[: at + len(said)], self._frames(request, turns)) or [Run(())]
        # The last token may become a longer one.
        return [*runs, replace(last, ids=last.ids[:-1])] if not last.key else [*runs, last]

    def _frames(self, request: Request, turns: int) -> list[ImageFrame]:
        items = recent(request.conversation, turns) if self.mark else []
        return [frame for item in items if not any(item.parts_of(ToolCall)) for frame in item.images]

    def _render(self, request: Request, turns: int, answer: bool) -> str:
        from jinja2 import TemplateError

        shown = messages(
            request.conversation, instructions=request.system, max_turns=turns, images=self.mark is not None
        )
        shown = [self._for_template(message) for message in shown]
        try:
            return self._apply(shown, request, answer)
        except TemplateError:
            # Some know no system, others insist on turns that alternate.
            return self._apply(_alternating(shown), request, answer)

    def _apply(self, shown: list[Message], request: Request, answer: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            shown,
            tools=[nested(tool) for tool in request.tools] or None,
            chat_template=self.template,
            add_generation_prompt=answer,
            tokenize=False,
            # Who waits for an answer in speech has no time for long thoughts; templates ignore what they do not know.
            enable_thinking=False,
            reasoning_effort="low",
        )
        return text

    def _for_template(self, message: Message) -> Message:
        """Models that see want every content as a list."""
        content = message["content"] or ""
        if isinstance(content, str):
            content = self._control.sub("", content)
            if self.mark and message["role"] != "tool":
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
        return {**message, "content": content, "tool_calls": [_with_arguments(call) for call in message["tool_calls"]]}

    def _read(self, text: str, frames: Sequence[ImageFrame]) -> list[Run]:
        pieces = text.split(self.mark) if self.mark and frames else [text]
        if len(pieces) != len(frames) + 1:
            raise EngineFailure("The model's chat template leaves pictures out")
        runs = []
        for n, piece in enumerate(pieces):
            if ids := tuple(self._tokenizer(piece, add_special_tokens=False)["input_ids"]):
                runs.append(Run(ids))
            if n < len(frames):
                runs.append(self._picture(frames[n]))
        return runs

    def _picture(self, frame: ImageFrame) -> Run:
        key = hashlib.blake2b(frame.data, digest_size=16).hexdigest()
        run = self._pictures.pop(key, None)
        if run is None:
            with Image.open(io.BytesIO(frame.data)) as image:
                image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
                picture = image.convert("RGB")
            picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            read = self._processor(text=[self.mark], images=[picture], return_tensors="pt", add_special_tokens=False)
            ids = read.pop("input_ids")[0].tolist()
            read.pop("attention_mask", None)
            run = Run(tuple(ids), key, dict(read))
        self._pictures[key] = run
        if len(self._pictures) > PICTURES:
            self._pictures.popitem(last=False)
        return run


def kept_turns(conversation: Conversation, most: int) -> int:
    """How many of the user's last turns are shown: `most`, but half of them are forgotten at a time.

    With one forgotten a turn, no two prompts would begin alike, and all of it would be read anew each time.
    """
    turns = sum(item.role == "user" for item in conversation.items)
    if turns <= most:
        return most
    step = max(1, most // 2)
    return turns - -(-(turns - most) // step) * step


def nested(tool: dict[str, Any]) -> dict[str, Any]:
    """A function's description as templates take it, whether it came flat or not."""
    if "function" in tool:
        return tool
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _alternating(shown: list[Message]) -> list[Message]:
    """User and assistant by turns, the system's words at the head of the user's."""
    merged: list[Message] = []
    for message in shown:
        role = "assistant" if message["role"] == "assistant" else "user"
        content = message["content"]
        if merged and merged[-1]["role"] == role:
            before = merged[-1]["content"]
            between = [] if isinstance(before, list) else "\n\n"
            merged[-1] = {"role": role, "content": before + between + content}
        else:
            merged.append({"role": role, "content": content})
    return merged
