"""The contracts of models: an `Engine` takes speech and images and responds in speech and text.

A `Cascade` is an engine made of an `STT`, an `LLM` and a `TTS`. All of them keep caches only; the `Conversation`
handed to every call is the truth. `tests/contracts/` runs one suite over every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from echosight.conversation import Conversation, Part, UserTurn
from echosight.events import Usage
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

__all__ = [
    "LLM",
    "STT",
    "TTS",
    "Chunk",
    "Engine",
    "GatedEngine",
    "GenerationSummary",
    "STTStream",
    "SpeechChunk",
    "TextChunk",
    "ToolCallChunk",
]


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A text delta of the response."""

    text: str


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """Mono PCM16 at the engine's `output_rate`, with the words that begin in it.

    Words are timed from the first sample of the response and count characters of the response's whole text.
    `provider` names the TTS, where that may be one of several.
    """

    pcm: bytes
    words: tuple[Word, ...] = ()
    provider: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallChunk:
    """Part of a function call; `arguments` is a delta of its JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """The last chunk of a response: its tokens, why it ended, and the names of the parts that made it.

    `finish` is ``stop``, ``length`` (the token limit was reached) or ``content_filter``.
    """

    usage: Usage = field(default_factory=Usage)
    finish: str = "stop"
    providers: tuple[str, ...] = ()


Chunk = TextChunk | SpeechChunk | ToolCallChunk | GenerationSummary


class Engine(Protocol):
    """A model, or several that work together. Calls for one conversation, known by its `id`, never overlap."""

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
        """Load. /health answers 503 until it returns. May be called again after `close`. Raises `SetupError`."""

    async def close(self) -> None:
        """Free the model. Fine without `start`, and twice."""

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """A part was appended to `conversation.pending_turn`: compute ahead, or do nothing.

        Speech comes as AudioParts of any length at `INPUT_SAMPLE_RATE`. Returns the partial transcript of the turn
        where it has changed, None otherwise.
        """

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The user seems to have finished: the final transcript of all speech of `turn`, where the engine makes one.

        Speech that was not prefilled is taken from `turn.pcm`. May be called early, during a silence; more
        prefill to the same turn voids the result. May be cancelled, and may overlap with the prefill of the next turn.
        """

    def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Bring the cache into line with the conversation, then stream the response; its last chunk is the summary.

        Runs as fast as it is read and no faster. Closing the generator stops the model within one step.
        Raises `EngineFailure`.
        """

    async def release(self, conversation_id: str) -> None:
        """Drop what is cached of a conversation; unknown ids are fine."""


class GatedEngine(Engine, Protocol):
    """An `Engine` as sessions see it: `generate` waits for a slot; it raises `EngineFull` where none gets free."""

    @property
    def at_capacity(self) -> bool:
        """Whether every slot is in use."""


class STTStream(Protocol):
    """One utterance on its way to text.

    One call at a time, except `close`, which may come during another call. After an `EngineFailure` or a cancelled
    `push`, part of the audio may be lost: close the stream, and push everything to a new one.
    """

    async def push(self, pcm: bytes) -> str | None:
        """Add speech: mono PCM16 at `INPUT_SAMPLE_RATE`, any number of whole samples.

        Returns the partial text where it has changed since it was last returned, None otherwise.
        Raises `EngineFailure` where the model fails or the stream is closed.
        """

    async def finalize(self) -> Transcript:
        """The transcript of all speech so far, with words timed from its first sample; an empty one without speech.

        More `push` may follow, which voids it. May be called again, also after it was cancelled.
        Raises `EngineFailure` where the model fails or the stream is closed.
        """

    async def close(self) -> None:
        """Free what the stream holds; a call in progress raises `EngineFailure`. Never raises, may be called twice."""


class STT(Protocol):
    """Speech to text."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None:
        """Load the model or connect. May be called again after `close`. Raises `SetupError`."""

    async def close(self) -> None:
        """Free the model. Open streams fail. Fine without `start`, and twice."""

    def open(self, language: str | None = None, speaker: str | None = None) -> STTStream:
        """A stream for a new utterance. Does no work yet, so it never fails; any number may be open.

        `language` is a BCP 47 tag; None or an unknown one leaves the choice to the model. Utterances of one `speaker`
        (an opaque id) sound alike: same voice, microphone and room.
        """


class LLM(Protocol):
    """A conversation in, text and function calls out."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None:
        """Load the model or connect. May be called again after `close`. Raises `SetupError`."""

    async def close(self) -> None:
        """Free the model. Fine without `start`, and twice."""

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """The user is speaking; `text` is the transcript so far ("" at the start): compute ahead, or do nothing."""

    def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        """Stream the reply to the conversation's last items; its last chunk is the `GenerationSummary`.

        Closing the generator stops the model within one step. Raises `EngineFailure`.
        """

    async def release(self, conversation_id: str) -> None:
        """Drop what is cached of a conversation; unknown ids are fine."""


class TTS(Protocol):
    """Text to speech."""

    rate: int
    """Hz of the speech; final once `start` returned."""

    voices: tuple[str, ...]
    """Names that `GenerateOptions.voice` may take; empty where there is no choice."""

    languages: tuple[str, ...]
    """Primary language subtags (``en``) that it speaks; empty where it speaks many, or where that is not known."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None:
        """Load the voice or connect. May be called again after `close`. Raises `SetupError`."""

    async def close(self) -> None:
        """Free the voice. Fine without `start`, and twice."""

    def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Speak one sentence as mono PCM16 at `rate` Hz, in chunks.

        Words are timed from the sentence's first sample and count its characters; a voice that does not know them
        gives none. Unknown voices and languages are spoken in a default one. Text without anything to speak may give
        no chunks. Closing the generator stops the voice
        within one step. Raises `EngineFailure`.
        """
