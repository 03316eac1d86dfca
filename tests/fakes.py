"""Engines and parts of engines that follow a script, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from echosight.conversation import Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions


def words(text: str, ms_a_word: int = 100) -> list[Chunk]:
    """A response at 24 kHz with words of `ms_a_word` each: first its text, then one chunk of speech per word."""
    chunks: list[Chunk] = [TextChunk(text)]
    end = 0
    for number, word in enumerate(text.split(" ")):
        end = text.index(word, end) + len(word)
        pcm = b"\x20\x20" * (24 * ms_a_word)
        chunks.append(SpeechChunk(pcm, (Word(number * ms_a_word, end),)))
    return chunks


@dataclass
class ScriptedEngine:
    """An `Engine` that follows a script and records its calls.

    Each response is the next of `answers`, each transcript the next of `transcripts`; the last one is repeated. An
    exception in a script is raised at its place. With a `gate`, every chunk waits for a permit. `steps` counts the
    chunks begun, `stopped` the generators that ended or were closed.
    """

    answers: Sequence[Sequence[Chunk | Exception]] = field(default_factory=lambda: [words("hello there")])
    transcripts: Sequence[str | Exception | None] = ("what was said",)
    gate: asyncio.Semaphore | None = None
    name: str = "fake"
    capacity: int = 8
    output_rate: int = 24_000
    voices: tuple[str, ...] = ("one",)
    stt: STT | None = None
    llm: LLM | None = None
    tts: TTS | None = None
    prefilled: list[Part] = field(default_factory=list)
    transcribed_ms: list[int] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    options: list[GenerateOptions] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    steps: int = 0
    stopped: int = 0

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        assert conversation.pending_turn is not None
        self.prefilled.append(part)
        return f"{len(self.prefilled)} parts"

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        await asyncio.sleep(0)
        self.transcribed_ms.append(turn.duration_ms)
        text = self.transcripts[min(len(self.transcribed_ms), len(self.transcripts)) - 1]
        if isinstance(text, Exception):
            raise text
        return None if text is None else Transcript(text)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        self.conversations.append(replace(conversation, items=list(conversation.items)))
        self.options.append(options)
        script = self.answers[min(len(self.conversations), len(self.answers)) - 1]
        try:
            for chunk in script:
                if isinstance(chunk, SpeechChunk) and not options.speech:
                    continue
                if self.gate is not None:
                    await self.gate.acquire()
                await asyncio.sleep(0)
                self.steps += 1
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
            if not any(isinstance(chunk, GenerationSummary) for chunk in script):
                yield GenerationSummary(providers=(self.name,))
        finally:
            self.stopped += 1

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)


class ScriptedPart:
    """What the scripted parts of a cascade have in common.

    `fails` names the step that raises `failure`: ``start``, or one that the part's class names.
    """

    def __init__(self, name: str, fails: str = "", failure: EngineFailure | None = None) -> None:
        self.name = name
        self.fails = fails
        self.failure = failure or EngineFailure(f"{name} failed")
        self.up = False

    async def start(self) -> None:
        if self.fails == "start":
            raise SetupError(f"{self.name} is not installed")
        self.up = True

    async def close(self) -> None:
        self.up = False

    def check(self, step: str) -> None:
        if self.fails == step:
            raise self.failure


class ScriptedSTT(ScriptedPart):
    """An `STT` that counts bytes. It may fail in ``push`` and in ``finalize``; `hold` holds back `finalize`."""

    def __init__(self, name: str = "stt", fails: str = "", failure: EngineFailure | None = None) -> None:
        super().__init__(name, fails, failure)
        self.streams: list[ScriptedSTTStream] = []
        self.hold: asyncio.Event | None = None

    async def close(self) -> None:
        await super().close()
        for stream in self.streams:
            await stream.close()

    @property
    def open_streams(self) -> list[ScriptedSTTStream]:
        return [stream for stream in self.streams if not stream.closed]

    def open(self, language: str | None = None, speaker: str | None = None) -> ScriptedSTTStream:
        self.streams.append(ScriptedSTTStream(self, language, speaker))
        return self.streams[-1]


class ScriptedSTTStream:
    """Its texts say how many bytes were pushed."""

    def __init__(self, stt: ScriptedSTT, language: str | None, speaker: str | None) -> None:
        self.language = language
        self.speaker = speaker
        self.pcm = b""
        self.closed = False
        self._stt = stt

    async def push(self, pcm: bytes) -> str | None:
        self._check("push")
        self.pcm += pcm
        return f"{len(self.pcm)} bytes" if pcm else None

    async def finalize(self) -> Transcript:
        self._check("finalize")
        if self._stt.hold is not None:
            await self._stt.hold.wait()
        self._check("finalize")
        return Transcript(f"{len(self.pcm)} bytes in all" if self.pcm else "")

    async def close(self) -> None:
        self.closed = True

    def _check(self, step: str) -> None:
        if self.closed:
            raise EngineFailure("The scripted stream is closed")
        self._stt.check(step)


Script = TextChunk | ToolCallChunk | GenerationSummary | Exception


class ScriptedLLM(ScriptedPart):
    """An `LLM` that says its `script`, with a summary at the end. It may fail ``at the first chunk`` and ``later``.

    `steps` counts the chunks begun; `ended` is set when a reply is complete or closed.
    """

    def __init__(
        self, *script: Script, name: str = "llm", fails: str = "", failure: EngineFailure | None = None
    ) -> None:
        super().__init__(name, fails, failure)
        self.script = script
        self.steps = 0
        self.ended = asyncio.Event()
        self.prefilled: list[str] = []
        self.conversations: list[Conversation] = []
        self.released: list[str] = []

    async def prefill(self, conversation: Conversation, text: str) -> None:
        self.prefilled.append(text)

    async def release(self, conversation_id: str) -> None:
        self.released.append(conversation_id)

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        self.conversations.append(conversation)
        summary = () if any(isinstance(chunk, GenerationSummary) for chunk in self.script) else (GenerationSummary(),)
        try:
            self.check("at the first chunk")
            for number, chunk in enumerate((*self.script, *summary)):
                if number:
                    self.check("later")
                if isinstance(chunk, Exception):
                    raise chunk
                self.steps += 1
                yield chunk
                await asyncio.sleep(0)
        finally:
            self.ended.set()


class ScriptedTTS(ScriptedPart):
    """A `TTS` that speaks each word as a chunk of `word_ms`. It may fail ``at the first chunk`` and ``later``.

    Without `timed` it gives no words. `on_chunk` is called with each chunk. `texts` and `options` are those of all
    calls, `steps` counts the chunks begun, `speaking` the calls in progress.
    """

    voices: tuple[str, ...] = ("one",)
    languages: tuple[str, ...] = ()

    def __init__(
        self,
        name: str = "tts",
        fails: str = "",
        failure: EngineFailure | None = None,
        *,
        rate: int = 1000,
        word_ms: int = 100,
        timed: bool = True,
    ) -> None:
        super().__init__(name, fails, failure)
        self.rate = rate
        self.word_ms = word_ms
        self.timed = timed
        self.texts: list[str] = []
        self.options: list[GenerateOptions] = []
        self.steps = 0
        self.speaking = 0
        self.on_chunk: Callable[[], object] = lambda: None

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        self.check("at the first chunk")
        self.texts.append(text)
        self.options.append(options)
        self.speaking += 1
        try:
            end = 0
            for number, word in enumerate(text.split()):
                if number:
                    self.check("later")
                end = text.index(word, end) + len(word)
                self.steps += 1
                self.on_chunk()
                words = (Word(number * self.word_ms, end),) if self.timed else ()
                yield SpeechChunk(bytes(2 * self.rate * self.word_ms // 1000), words)
                await asyncio.sleep(0)
        finally:
            self.speaking -= 1
