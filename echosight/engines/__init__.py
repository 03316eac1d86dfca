"""What answers: the contracts that models meet.

An `Engine` hears, sees and answers. A `Cascade` is an engine made of a `STT`, a `LLM` and a
`TTS`. All of them keep caches only; the `Conversation` handed to every call is the truth.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from echosight.conversation import Conversation, Part, UserTurn
from echosight.events import Usage
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A text delta of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """Mono PCM16 at the engine's `output_rate`, with the words that begin in it.

    Words are timed from the first sample of the answer and count characters of the answer's whole text.
    `made_by` names who speaks, where that may be one of several.
    """

    pcm: bytes
    words: tuple[Word, ...] = ()
    provider: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallChunk:
    """A piece of a function call; `arguments` is a delta of its JSON."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """The last piece of an answer, where the engine has something to say about it.

    `finish` is ``stop``, ``length`` (the token limit was reached) or ``content_filter``.
    """

    usage: Usage = field(default_factory=Usage)
    finish: str = "stop"
    providers: tuple[str, ...] = ()


Chunk = TextChunk | SpeechChunk | ToolCallChunk | GenerationSummary


class Engine(Protocol):
    """A model. `conversation.id` identifies a conversation; calls for one conversation never overlap."""

    @property
    def name(self) -> str:
        """What it is, for people: shown by the log, /health and the page."""

    @property
    def capacity(self) -> int:
        """Conversations it can hold at once."""

    @property
    def output_rate(self) -> int:
        """Hz of the speech it yields."""

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that a response may be spoken in; empty where there is no choice."""

    @property
    def stt(self) -> STT | None:
        """Its speech to text, where it has one by itself; also for plain endpoints."""

    @property
    def llm(self) -> LLM | None:
        """Its language model, where it has one by itself."""

    @property
    def tts(self) -> TTS | None:
        """Its text to speech, where it has one by itself; also for plain endpoints."""

    async def start(self) -> None:
        """Load. /health answers 503 until it returns. Raises `SetupError`."""

    async def close(self) -> None:
        """Stop whatever it runs."""

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """A part was appended to `conversation.open`: compute ahead, or do nothing.

        Speech comes as AudioParts of any length at `INPUT_SAMPLE_RATE`. Returns what was understood of the turn so far,
        None where nothing new is known.
        """

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The user seems to have finished: the final transcript of all speech of `turn`, where the engine makes one.

        Speech that was not prefilled is taken from `turn.pcm`. May be asked early, during a silence; it is void when
        more is prefilled to the same turn. May be cancelled, and may overlap with the prefill of the next turn.
        """

    def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Bring the cache into line with the conversation, then answer.

        Runs as fast as it is read and no faster. Closing the generator stops the model within one step.
        Raises `EngineFailure` where the engine breaks.
        """

    async def release(self, conversation_id: str) -> None:
        """Forget what is cached of a conversation; unknown ids are fine."""


class GatedEngine(Engine, Protocol):
    """An `Engine` as sessions see it: `generate` waits for a slot; it raises `EngineFull` where none gets free."""

    @property
    def at_capacity(self) -> bool:
        """Whether every slot is in use."""


class STT(Protocol):
    """Audio in, text out. An utterance is known by a name that no other has, in whatever conversation."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """More of an utterance (PCM16 at `INPUT_SAMPLE_RATE`); returns the partial text where it changed.

        Utterances of one `speaker` sound alike: same voice, microphone and room.
        """

    async def finish(self, utterance: str) -> Transcript:
        """The utterance's transcript. May be followed by more `hear` of the same one, which voids it."""

    async def forget(self, utterance: str) -> None:
        """The utterance is over or was dropped."""


class LLM(Protocol):
    """A conversation in, text and function calls out."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """The user speaks, and is heard to say `text` so far (nothing yet: ""): compute ahead, or do nothing."""

    def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Stream the reply to the conversation's last items. Closing it stops the model."""

    async def release(self, conversation_id: str) -> None: ...


class TTS(Protocol):
    """Text in, speech out."""

    rate: int
    voices: tuple[str, ...]

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Speak one sentence. Words are timed from its first sample and count its characters;
        a voice that does not know them gives none. Closing it stops the voice."""
