"""MiniCPM-o 2.6 and 4.5 as an engine: one process for each conversation, with the library versions the model needs."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from echosight.audio.resampling import Resampler
from echosight.conversation import AudioPart, Conversation, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.cascade.listener import Listener
from echosight.engines.minicpmo.process_cache import ProcessCache, SystemPrompt
from echosight.engines.runtime.huggingface.source import is_local, read_config
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.subprocess_pool import Process
from echosight.engines.tts.word_timing import spread_words
from echosight.errors import EngineFull, SetupError
from echosight.events import Usage
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk, Transcript, Word, pcm_ms
from echosight.options import GenerateOptions

MODULE = "echosight.engines.minicpmo.process"
LIBROSA = ("librosa==0.9.0", "setuptools<81")
"""librosa 0.9 imports pkg_resources, which setuptools 81 removed."""

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
"""Requirements of the models' remote code, from their model cards."""

MEMORY_MIB = {"2.6": 19_000, "4.5": 22_000}
"""GPU memory of one process: the model and its conversation."""

DEFAULT_REPLY_TOKENS = 512
MAX_CHUNKS_AHEAD = 2
"""Chunks, of at most a second each, that the model may be ahead of the reader."""


class MiniCpmEngine:
    """An `Engine`. Each of `commands` starts one process, for one conversation at a time.

    `stt`, if any, transcribes the user's speech; the model itself gives no transcript.
    """

    output_rate = 24_000
    voices: tuple[str, ...] = ()
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(self, name: str, commands: list[tuple[str, ...]], *, stt: STT | None = None) -> None:
        self.name = name
        self.capacity = len(commands)
        self.loading = LoadProgress(name)
        self.stt = stt
        self._listener = Listener(stt) if stt is not None else None
        self._caches = [ProcessCache(_ModelProcess(name, command)) for command in commands]
        self._busy: set[ProcessCache] = set()

    async def start(self) -> None:
        """Load one process after the other: loading takes more memory than running. Raises `SetupError`."""
        try:
            for number, cache in enumerate(self._caches, 1):
                self.loading.report(f"process {number} of {self.capacity}", None)
                await cache.process.start()
            if self.stt is not None:
                self.loading.report(self.stt.name, None)
                await self.stt.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(cache.process.close() for cache in self._caches))
        if self.stt is not None:
            await self.stt.close()

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """The model reads whole seconds of the turn as they come, with the images shown in them."""
        turn = conversation.pending_turn
        if turn is None:
            return None
        partial = None
        if self._listener is not None and isinstance(part, AudioPart):
            partial = await self._listener.push(conversation, turn, part.pcm or b"")
        cache = self._cache_of(conversation.id)
        if cache not in self._busy and cache.has_full_chunk(turn):
            voice_sample = cache.system_prompt.voice_sample
            system_prompt = SystemPrompt(voice_sample, conversation.instructions, conversation.language)
            await self._catch_up(cache, conversation, system_prompt, turn)
        return partial

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The transcript of the `stt`; None without one."""
        return await self._listener.finalize_transcript(conversation, turn) if self._listener is not None else None

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `EngineFailure`, and `EngineFull` where every process is generating for another conversation."""
        if self._listener is not None:
            await self._listener.drop_finished(conversation)
        cache = self._cache_of(conversation.id)
        self._busy.add(cache)
        try:
            instructions = conversation.instructions if options.instructions is None else options.instructions
            language = options.language or conversation.language
            voice_sample = _input_pcm(options.voice_sample) if options.voice_sample else b""
            system_prompt = SystemPrompt(voice_sample, instructions, language)
            await self._catch_up(cache, conversation, system_prompt, None)
            async with aclosing(self._reply(cache, options)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._busy.discard(cache)

    async def release(self, conversation_id: str) -> None:
        """Make the conversation's process available to others; unknown ids are fine."""
        if self._listener is not None:
            await self._listener.release(conversation_id)
        for cache in self._caches:
            if cache.conversation_id == conversation_id:
                cache.unassign()

    async def _catch_up(
        self, cache: ProcessCache, conversation: Conversation, system_prompt: SystemPrompt, turn: UserTurn | None
    ) -> None:
        """Send the process what its model lacks. If cancelled midway, the model's cache is unknown and is reset."""
        # Before the steps are computed: a process that was restarted has read nothing.
        channel = await cache.process.open()
        completed = False
        try:
            if steps := cache.pending_steps(conversation, system_prompt, turn):
                channel.send(FrameType.BEGIN, json.dumps({"do": "prefill", "steps": steps}).encode())
                await channel.receive()
            completed = True
        finally:
            if not completed:
                cache.reset()
            channel.close()

    async def _reply(self, cache: ProcessCache, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        sampling: dict[str, float] = {"max_new_tokens": options.max_output_tokens or DEFAULT_REPLY_TOKENS}
        if options.temperature is not None:
            sampling["temperature"] = options.temperature
        if options.top_p is not None:
            sampling["top_p"] = options.top_p
        request = {"do": "generate", "speech": options.speech, "credit": MAX_CHUNKS_AHEAD, "options": sampling}
        timeline = _ReplyTimeline(self.output_rate)
        channel = await cache.process.open()
        cache.reply_started()
        try:
            channel.send(FrameType.BEGIN, json.dumps(request).encode())
            while (frame := await channel.receive()).kind is not FrameType.DONE:
                if frame.kind is FrameType.PARTIAL:
                    yield timeline.add_text(frame.payload.decode())
                    if not options.speech:
                        channel.send(FrameType.CREDIT, (1).to_bytes(4, "little"))
                elif frame.kind is FrameType.AUDIO:
                    yield timeline.add_speech(frame.payload)
                    channel.send(FrameType.CREDIT, (1).to_bytes(4, "little"))
            cache.reply_complete(timeline.text)
            completed = json.loads(frame.payload)["completed"]
            yield GenerationSummary(Usage(), "stop" if completed else "length", (self.name,))
        finally:
            channel.close()

    def _cache_of(self, conversation_id: str) -> ProcessCache:
        """The conversation's process, else a free one, else that of the least recently used conversation.

        Raises `EngineFull` where all are generating.
        """
        for cache in self._caches:
            if cache.conversation_id == conversation_id:
                break
        else:
            idle = [cache for cache in self._caches if cache not in self._busy]
            if not idle:
                raise EngineFull
            cache = min(idle, key=lambda each: (each.conversation_id is not None, each.last_used_s))
            cache.assign(conversation_id)
        cache.last_used_s = asyncio.get_running_loop().time()
        return cache


class _ReplyTimeline:
    """The text of a reply so far, and the times of its words. `rate` in Hz."""

    def __init__(self, rate: int) -> None:
        self.text = ""
        self._rate = rate
        self._bytes = 0
        self._timed = 0
        """Characters of `text` whose words have a time."""

    def add_text(self, delta: str) -> TextChunk:
        self.text += delta
        return TextChunk(delta)

    def add_speech(self, pcm: bytes) -> SpeechChunk:
        """The model sends speech right behind its text, so the words since the last speech are spread over `pcm`."""
        start_ms = pcm_ms(self._bytes, self._rate)
        spread = spread_words(self.text[self._timed :], pcm_ms(len(pcm), self._rate))
        words = tuple(Word(word.start_ms + start_ms, word.text_end + self._timed) for word in spread)
        self._timed = len(self.text)
        self._bytes += len(pcm)
        return SpeechChunk(pcm, words)


class _ModelProcess(Process):
    """A supervised process that another Python runs, in the model's environment."""

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        super().__init__(MODULE, name)
        self._command = command


def detect_version(source: str) -> str:
    """2.6 or 4.5, from the ``config.json`` of a folder, else from the name. Raises `SetupError` for a bad folder."""
    config = read_config(Path(source).expanduser(), source) if is_local(source) else {}
    version = str(config.get("version", ""))
    return "4.5" if "4.5" in (version or Path(source).name.replace("_", ".")) else "2.6"


def load(source: str, *, stt: STT | None = None) -> MiniCpmEngine:
    """An engine for a Hugging Face id or a folder, with as many processes as fit into the GPU's free memory.

    Raises `SetupError` without uv or where not even one process fits.
    """
    version = detect_version(source)
    if shutil.which("uv") is None:
        raise SetupError("MiniCPM-o runs in an environment of its own, which uv makes: pip install uv")
    capacity = free_gpu_mib() // MEMORY_MIB[version]
    if capacity < 1:
        raise SetupError(
            f"{source} needs a CUDA GPU with {MEMORY_MIB[version] // 1000} GB free, and nvidia-smi shows none: "
            "choose a smaller --model"
        )
    python = f"{sys.version_info.major}.{min(sys.version_info.minor, 11)}"
    pins = [argument for pin in PINS[version] for argument in ("--with", pin)]
    command = ("uv", "run", "--no-project", "--isolated", "--python", python, *pins, "python", "-m", MODULE, source)
    return MiniCpmEngine(Path(source).name, [command] * capacity, stt=stt)


def free_gpu_mib() -> int:
    """Free memory of the first GPU in MiB, from nvidia-smi; 0 without one."""
    query = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(output.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _input_pcm(sample: AudioChunk) -> bytes:
    """The sample as PCM16 at `INPUT_SAMPLE_RATE`."""
    return (
        sample.pcm
        if sample.rate == INPUT_SAMPLE_RATE
        else Resampler(sample.rate, INPUT_SAMPLE_RATE).push(sample.pcm, last=True)
    )
