"""The omni engine; everything that computes runs in the model's thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from echosight.conversation import AudioPart, Conversation, ImagePart, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary
from echosight.engines.cascade.listener import Listener
from echosight.engines.omni.batch_scheduler import BatchScheduler
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.worker import Worker
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript
from echosight.options import GenerateOptions

if TYPE_CHECKING:
    from echosight.engines.omni.conversation_cache import ConversationSnapshot
    from echosight.engines.omni.generation import Generation, GenerationRequest
    from echosight.engines.omni.model_runner import ModelRunner

DEFAULT_REPLY_TOKENS = 1024


class OmniEngine:
    """An `Engine` whose model hears while the user speaks. `build` loads it in the thread that then owns it.

    `stt`, if any, transcribes the user's speech; the model itself gives no transcript. `seed` makes replies repeatable.
    An unknown voice means the model's first one. Speed, voice samples and tools are not supported.
    """

    output_rate = 24_000
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(
        self,
        name: str,
        build: Callable[[], ModelRunner],
        *,
        capacity: int,
        stt: STT | None = None,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.voices: tuple[str, ...] = ()
        self.loading = LoadProgress(name)
        self.stt = stt
        self._build = build
        self._listener = Listener(stt) if stt is not None else None
        self._seed = seed
        self._worker = Worker("omni")
        self._runner: ModelRunner
        self._scheduler: BatchScheduler[Generation] = BatchScheduler(self._step, lambda generation: generation.done)
        self._scheduling: asyncio.Task[None] | None = None
        self._closed = False
        self._samples_needed: dict[str, tuple[str, int]] = {}
        """Conversation id -> (id of the pending turn, samples of it with which there is more to compute)."""

    async def start(self) -> None:
        """Load the model, then the `stt`. Raises `SetupError`."""
        self._runner = await self._worker.call(lambda: self.loading.run(self._build))
        self._samples_needed.clear()
        self._closed = False
        self.voices = self._runner.model.speakers
        if self.stt is not None:
            self.loading.report(self.stt.name, None)
            await self.stt.start()
        self._scheduling = asyncio.create_task(self._scheduler.run(), name="omni scheduler")

    async def close(self) -> None:
        """Fail the replies in progress and end the model's thread."""
        if self._scheduling is not None:
            self._scheduling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._scheduling
        if self.stt is not None:
            await self.stt.close()
        self._closed = True
        await self._worker.close()

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """Compute the turn's whole encoder windows; returns the `stt`'s partial transcript where it changed.

        Raises `EngineFailure`.
        """
        turn = conversation.pending_turn
        if turn is None:
            return None
        if self._has_work(conversation.id, turn, part):
            snapshot = _snapshot(conversation, self._runner.model.preamble, turn)
            with _engine_failures():
                needed = await self._worker.call(lambda: self._runner.prefill(snapshot))
            self._samples_needed[conversation.id] = (turn.id, needed)
        if self._listener is None or not isinstance(part, AudioPart):
            return None
        return await self._listener.push(conversation, turn, part.pcm or b"")

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        """The transcript of the `stt`; None without one."""
        return await self._listener.finalize_transcript(conversation, turn) if self._listener is not None else None

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `EngineFailure`, and `EngineFull` where as many conversations as fit are generating."""
        runner = self._runner
        if self._listener is not None:
            await self._listener.drop_finished(conversation)
        request = self._request(conversation, options)
        snapshot = _snapshot(conversation, runner.model.preamble, None)
        started: list[Generation] = []
        try:
            with _engine_failures():
                await self._worker.call(lambda: started.append(runner.start(snapshot, request)))
                async with aclosing(self._scheduler.stream(started[0])) as chunks:
                    async for chunk in chunks:
                        yield _with_provider(chunk, self.name)
        finally:
            if not self._closed:
                # In the model's thread, so after a step or a start that a cancelled reader left running.
                await asyncio.shield(self._worker.call(lambda: runner.finish(snapshot.id, started)))

    async def release(self, conversation_id: str) -> None:
        """Drop the conversation's caches; unknown ids are fine."""
        self._samples_needed.pop(conversation_id, None)
        if self._listener is not None:
            await self._listener.release(conversation_id)
        await self._worker.call(lambda: self._runner.release(conversation_id))

    async def _step(self, generations: Sequence[Generation]) -> list[list[Chunk]]:
        return await self._worker.call(lambda: self._runner.step(generations))

    def _has_work(self, conversation_id: str, turn: UserTurn, part: Part) -> bool:
        """Whether there is something to compute: the items before a new turn, an image, or a window of the encoder."""
        turn_id, needed = self._samples_needed.get(conversation_id, ("", 0))
        if turn_id != turn.id or isinstance(part, ImagePart):
            return True
        return isinstance(part, AudioPart) and turn.duration_ms * INPUT_SAMPLE_RATE // 1000 >= needed

    def _request(self, conversation: Conversation, options: GenerateOptions) -> GenerationRequest:
        from echosight.engines.omni.generation import GenerationRequest
        from echosight.engines.runtime.sampling import SamplingParams

        voices = {voice.lower(): voice for voice in self.voices}
        speaker = voices.get((options.voice or "").lower(), next(iter(self.voices), None))
        default = self._runner.model.text_sampling
        sampling = SamplingParams(
            default.temperature if options.temperature is None else options.temperature,
            default.top_p if options.top_p is None else options.top_p,
            default.top_k,
        )
        instructions = options.instructions if options.instructions != conversation.instructions else None
        language = options.language if options.language != conversation.language else None
        return GenerationRequest(
            sampling,
            options.max_output_tokens or DEFAULT_REPLY_TOKENS,
            speaker if options.speech else None,
            instructions=_join_lines(instructions, _language_instruction(language)) or None,
            seed=self._seed,
        )


@contextlib.contextmanager
def _engine_failures() -> Iterator[None]:
    """Turn torch's exceptions (out of memory, say) into `EngineFailure`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise EngineFailure(f"The model failed: {error}") from error


def _snapshot(conversation: Conversation, preamble: str, turn: UserTurn | None) -> ConversationSnapshot:
    from echosight.engines.omni.conversation_cache import ConversationSnapshot

    system = _join_lines(preamble, conversation.instructions, _language_instruction(conversation.language))
    items = tuple(conversation.items)
    return ConversationSnapshot(conversation.id, items, system, turn.to_item() if turn is not None else None)


def _language_instruction(language: str | None) -> str | None:
    return f"Answer in the language {language}." if language else None


def _join_lines(*lines: str | None) -> str:
    return "\n".join(line for line in lines if line)


def _with_provider(chunk: Chunk, name: str) -> Chunk:
    return GenerationSummary(chunk.usage, chunk.finish, (name,)) if isinstance(chunk, GenerationSummary) else chunk
