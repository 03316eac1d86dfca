"""Single frames: the engine describes each in JSON, and may refer to the last ones of the same caller's session."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from echosight.conversation import Conversation, ImagePart, Item, Part, TextPart
from echosight.engines import TextChunk
from echosight.engines.llm.echo import EchoLLM
from echosight.errors import CannotSee, EngineFailure, InputError
from echosight.media import ImageFrame
from echosight.options import GenerateOptions
from echosight.server.manager import LARGE_BYTES, StreamManager
from echosight.vision.description import (
    REPLY_SCHEMA,
    FrameDescription,
    InvalidReply,
    instructions,
    read_reply,
    repair_request,
)
from echosight.vision.statistics import describe, measure

MAX_FRAMES = 4
"""Frames of a session that the next one may refer to. Of the newest the picture is kept, of the others the reply."""

MAX_SESSIONS = 256
MAX_IMAGE_BYTES = 64 << 20
"""Pictures that all sessions keep together; the sessions that were used least recently are forgotten first."""

MAX_REPLY_TOKENS = 1024
QUESTION = "Describe this picture."
DEMO_NOTE = "This is the built-in demo: it measures the picture and recognises nothing in it, and so it sees no risks."
SEEING_MODELS = (
    "start the server with a model that can: --model Qwen/Qwen2.5-VL-3B-Instruct, --model Qwen/Qwen2.5-Omni-3B, "
    "or --model http://HOST/v1#NAME with a vision-language model behind an OpenAI-compatible server"
)


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """A frame to describe. `caller` and `session_id` together name the session whose last frames the model sees.

    `language` is a BCP 47 tag. `metadata` is JSON of the client's own (place, time, device…) that the
    model reads.
    """

    frame: ImageFrame
    caller: str
    session_id: str
    prompt: str | None = None
    language: str | None = None
    metadata: str = ""

    @property
    def text(self) -> str:
        """What the model reads with the picture."""
        known = f"Known about the picture: {self.metadata}" if self.metadata else ""
        return "\n".join(line for line in (self.prompt or QUESTION, known) if line)


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """A frame and the reply to it; `frame` is None once a newer one came."""

    frame: ImageFrame | None
    text: str
    reply: str
    at_s: float


class FrameMemory:
    """The last frames of each session, in memory only, and for no longer than `max_age_s` after the newest."""

    def __init__(self, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], list[SeenFrame]] = OrderedDict()
        """(caller, session id) -> its frames, the oldest first; the session that was used last comes last."""

    def recall(self, caller: str, session_id: str) -> list[SeenFrame]:
        """The session's frames, the oldest first."""
        self._forget()
        return [*self._sessions.get((caller, session_id), ())]

    def remember(self, request: FrameRequest, reply: str) -> None:
        """Add a frame to its session."""
        key = request.caller, request.session_id
        earlier = [replace(seen, frame=None) for seen in self._sessions.pop(key, ())]
        newest = SeenFrame(request.frame, request.text, reply, self._clock())
        self._sessions[key] = [*earlier, newest][-MAX_FRAMES:]
        self._forget()

    def age_s(self, seen: SeenFrame) -> float:
        return self._clock() - seen.at_s

    def _forget(self) -> None:
        def image_bytes() -> int:
            return sum(len(seen.frame.data) for frames in self._sessions.values() for seen in frames if seen.frame)

        while self._sessions and (
            self.age_s(next(iter(self._sessions.values()))[-1]) > self._max_age_s
            or len(self._sessions) > MAX_SESSIONS
            or image_bytes() > MAX_IMAGE_BYTES
        ):
            self._sessions.popitem(last=False)


class FrameAnalyst:
    """Describes frames with the server's engine; every request to it takes one of the engine's slots."""

    def __init__(self, manager: StreamManager) -> None:
        self.memory = FrameMemory(manager.settings.idle_timeout_s)
        self._manager = manager
        self._prompt = manager.settings.vision_prompt
        self._language = manager.settings.language

    async def describe(self, request: FrameRequest) -> FrameDescription:
        """Raises `InputError` 501 where the model takes no images, `EngineFull` and `EngineFailure`."""
        earlier = self.memory.recall(request.caller, request.session_id)
        if isinstance(self._manager.engine.llm, EchoLLM):
            description = await self._describe_by_statistics(request.frame, earlier)
        else:
            description = await self._ask(request, earlier)
        self.memory.remember(request, description.model_dump_json())
        return description

    async def _describe_by_statistics(self, frame: ImageFrame, earlier: list[SeenFrame]) -> FrameDescription:
        previous = earlier[-1].frame if earlier else None

        def sentences() -> str:
            return describe(measure(frame), measure(previous) if previous else None)

        async with self._manager.engine.slots.hold():
            # Measuring takes long whatever the file's size, so it always runs in the thread.
            text = await self._manager.parse(LARGE_BYTES, sentences)
        return FrameDescription(description=f"{text} {DEMO_NOTE}", risks=[], suggestions=[])

    async def _ask(self, request: FrameRequest, earlier: list[SeenFrame]) -> FrameDescription:
        """The model's description. A reply that is not valid goes back to it once, with the reason."""
        language = request.language or self._language
        conversation = Conversation(instructions=instructions(self._prompt, language), language=language)
        for seen in earlier:
            conversation.add(_shown(seen.frame, f"[{self.memory.age_s(seen):.0f} s ago] {seen.text}"))
            conversation.add(Item("assistant", (TextPart(seen.reply),)))
        conversation.add(_shown(request.frame, request.text))
        try:
            reply = await self._generate(conversation)
            try:
                return read_reply(reply)
            except InvalidReply as fault:
                conversation.add(Item("assistant", (TextPart(reply or "(nothing)"),)))
                conversation.add(Item("user", (TextPart(repair_request(fault)),)))
                return read_reply(await self._generate(conversation))
        except InvalidReply as fault:
            raise EngineFailure(f"The model gave no valid description, twice; the last time {fault}") from fault
        except CannotSee as error:
            raise InputError(f"{error.message}; {SEEING_MODELS}", code=error.code, status=501) from error
        finally:
            await asyncio.shield(self._manager.engine.release(conversation.id))

    async def _generate(self, conversation: Conversation) -> str:
        options = GenerateOptions(
            speech=False, max_output_tokens=MAX_REPLY_TOKENS, reply_schema=REPLY_SCHEMA, require_images=True, tools=()
        )
        async with aclosing(self._manager.engine.generate(conversation, options)) as chunks:
            return "".join([chunk.text async for chunk in chunks if isinstance(chunk, TextChunk)])


def _shown(frame: ImageFrame | None, text: str) -> Item:
    parts: tuple[Part, ...] = (TextPart(text),)
    return Item("user", (ImagePart(frame), *parts) if frame else parts)
