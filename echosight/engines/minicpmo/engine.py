"""MiniCPM-o 2.6 and 4.5 as an engine: each conversation has a process of its own, with the libraries of its time."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from echosight.audio.resampling import Resampler
from echosight.conversation import AudioPart, Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.minicpmo.process_cache import Seat, Voice
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.subprocess_pool import Process
from echosight.engines.tts.word_timing import spread_words
from echosight.errors import EngineFull, SetupError
from echosight.events import Usage
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, Transcript, Word
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)

MODULE = "echosight.engines.minicpmo.process"
LIBROSA = ("librosa==0.9.0", "setuptools<81")
"""librosa 0.9 imports pkg_resources, which later ones have no more."""

PINS = {
    "2.6": (
        "torch==2.3.1",
        "torchaudio==2.3.1",
        "torchvision==0.18.1",
        "transformers==4.44.2",
        "numpy<2",
        *LIBROSA,
        "soundfile==0.12.1",
        "vector-quantize-pytorch==1.18.5",
        "vocos==0.1.0",
        "timm==0.9.10",
        "sentencepiece==0.2.0",
        "pillow==10.1.0",
    ),
    "4.5": (
        "torch>=2.3.0,<=2.8.0",
        "torchaudio<=2.8.0",
        "transformers==4.51.0",
        "accelerate",
        *LIBROSA,
        "minicpmo-utils[all]>=1.0.5",
    ),
}
MIB = {"2.6": 19_000, "4.5": 22_000}
"""What a model and its conversation take of a GPU's memory."""

REPLY_TOKENS = 512
AHEAD = 2
"""Pieces, of a second at most, that a model may be ahead of the reader."""


class MiniCpmEngine:
    """An `Engine`. `commands` start its processes, one a conversation; `transcriber`, where given, hears along."""

    output_rate = 24_000
    voices: tuple[str, ...] = ()
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(self, name: str, commands: list[tuple[str, ...]], *, transcriber: STT | None = None) -> None:
        self.name = name
        self.capacity = len(commands)
        self.stt = transcriber
        self.loading = LoadProgress(name)
        self._transcriber = transcriber
        self._seats = [Seat(_OwnProcess(name, command)) for command in commands]
        self._busy: set[Seat] = set()

    async def start(self) -> None:
        """Loads one after the other: together they would need the memory for loading all at once."""
        try:
            for number, seat in enumerate(self._seats, 1):
                self.loading.tell(f"process {number} of {self.capacity}", None)
                await seat.process.start()
            if self._transcriber is not None:
                self.loading.tell(self._transcriber.name, None)
                await self._transcriber.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await asyncio.gather(*(seat.process.close() for seat in self._seats))
        if self._transcriber is not None:
            await self._transcriber.close()

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """Whole seconds are read as they come, with the pictures shown in them."""
        turn = conversation.pending_turn
        if turn is None:
            return None
        partial = None
        if self._transcriber is not None and isinstance(part, AudioPart):
            partial = await self._transcriber.hear(turn.id, part.pcm or b"", conversation.language, conversation.id)
        seat = self._seat(conversation.id)
        if seat not in self._busy and seat.due(turn):
            voice = Voice(seat.voice.sample, conversation.instructions, conversation.language)
            await self._read(seat, conversation, voice, turn)
        return partial

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        return await self._transcriber.finish(turn.id) if self._transcriber is not None else None

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `EngineFailure`, and `EngineFull` where every process is answering somebody else."""
        seat = self._seat(conversation.id)
        self._busy.add(seat)
        try:
            system = conversation.instructions if options.instructions is None else options.instructions
            language = options.language or conversation.language
            sample = _pcm_of(options.voice_sample) if options.voice_sample else b""
            await self._read(seat, conversation, Voice(sample, system, language), None)
            async with aclosing(self._answer(seat, options)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._busy.discard(seat)

    async def release(self, conversation_id: str) -> None:
        for seat in self._seats:
            if seat.conversation == conversation_id:
                seat.leave()

    async def _read(self, seat: Seat, conversation: Conversation, voice: Voice, turn: UserTurn | None) -> None:
        """Have the process read what it has not. Whoever is stopped in the middle of it leaves a blank seat."""
        # Before the steps: a process that has to come up again has read nothing.
        channel = await seat.process.open()
        whole = False
        try:
            if steps := seat.steps(conversation, voice, turn):
                channel.send(FrameType.BEGIN, json.dumps({"do": "read", "steps": steps}).encode())
                await channel.receive()
            whole = True
        finally:
            if not whole:
                seat.blank()
            channel.close()

    async def _answer(self, seat: Seat, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        wishes: dict[str, float] = {"max_new_tokens": options.max_output_tokens or REPLY_TOKENS}
        if options.temperature is not None:
            wishes["temperature"] = options.temperature
        if options.top_p is not None:
            wishes["top_p"] = options.top_p
        order = {"do": "answer", "speech": options.speech, "credit": AHEAD, "options": wishes}
        spoken = _Spoken(self.output_rate)
        channel = await seat.process.open()
        # Until it is complete, nobody knows how much of it the model has made.
        seat.answering()
        try:
            channel.send(FrameType.BEGIN, json.dumps(order).encode())
            while (frame := await channel.receive()).kind is not FrameType.DONE:
                if frame.kind is FrameType.PARTIAL:
                    yield spoken.text(frame.payload.decode())
                    if not options.speech:
                        channel.send(FrameType.CREDIT, (1).to_bytes(4, "little"))
                elif frame.kind is FrameType.AUDIO:
                    yield spoken.speech(frame.payload)
                    channel.send(FrameType.CREDIT, (1).to_bytes(4, "little"))
            seat.answered(spoken.said)
            completed = json.loads(frame.payload)["completed"]
            yield GenerationSummary(Usage(), "stop" if completed else "length", (self.name,))
        finally:
            channel.close()

    def _seat(self, conversation_id: str) -> Seat:
        """The conversation's own, a free one, or that of the conversation unused for longest."""
        for seat in self._seats:
            if seat.conversation == conversation_id:
                break
        else:
            idle = [seat for seat in self._seats if seat not in self._busy]
            if not idle:
                raise EngineFull
            seat = min(idle, key=lambda s: (s.conversation is not None, s.used))
            seat.take(conversation_id)
        seat.used = asyncio.get_running_loop().time()
        return seat


class _Spoken:
    """What was said so far, and where its words lie in the speech."""

    def __init__(self, rate: int) -> None:
        self.said = ""
        self._rate = rate
        self._bytes = 0
        self._begun = 0

    def text(self, text: str) -> TextChunk:
        self.said += text
        return TextChunk(text)

    def speech(self, pcm: bytes) -> SpeechChunk:
        """A chunk of speech comes behind the text that is spoken in it, more or less."""
        at_ms = self._bytes * 500 // self._rate
        new = self.said[self._begun :]
        spread = spread_words(new, len(pcm) * 500 // self._rate)
        words = tuple(Word(word.start_ms + at_ms, word.text_end + self._begun) for word in spread)
        self._begun = len(self.said)
        self._bytes += len(pcm)
        return SpeechChunk(pcm, words)


class _OwnProcess(Process):
    """A supervised process that is not started by this Python."""

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        super().__init__(MODULE, name)
        self._command = command


def version_of(source: str) -> str:
    """2.6 or 4.5, by the ``config.json`` of a folder, or by its name where that does not say."""
    told = ""
    try:
        told = str(json.loads((Path(source) / "config.json").read_text("utf-8")).get("version", ""))
    except (OSError, ValueError):
        log.debug("%s holds no config.json", source)
    return "4.5" if "4.5" in (told or Path(source).name.replace("_", ".")) else "2.6"


def load(source: str, *, transcriber: STT | None = None) -> MiniCpmEngine:
    """A Hugging Face id or a folder. As many conversations as the GPU has room for. Raises `SetupError`."""
    version = version_of(source)
    if shutil.which("uv") is None:
        raise SetupError("MiniCPM-o runs in an environment of its own, which uv makes: pip install uv")
    room = free_mib() // MIB[version]
    if room < 1:
        raise SetupError(
            f"{source} needs a CUDA GPU with {MIB[version] // 1000} GB free, and nvidia-smi shows no such: "
            "choose a smaller --model"
        )
    python = f"{sys.version_info.major}.{min(sys.version_info.minor, 11)}"
    pins = [word for pin in PINS[version] for word in ("--with", pin)]
    command = ("uv", "run", "--no-project", "--isolated", "--python", python, *pins, "python", "-m", MODULE, source)
    return MiniCpmEngine(Path(source).name, [command] * room, transcriber=transcriber)


def free_mib() -> int:
    """Free memory of the first GPU in MiB, by nvidia-smi; 0 without one."""
    query = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(told.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _pcm_of(sample: AudioChunk) -> bytes:
    """At the rate that models hear."""
    return (
        sample.pcm
        if sample.rate == INPUT_SAMPLE_RATE
        else Resampler(sample.rate, INPUT_SAMPLE_RATE).push(sample.pcm, last=True)
    )
