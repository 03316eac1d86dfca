"""The omni engine as the rest of the server sees it; everything that computes happens in the model's thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from echosight.conversation import AudioPart, Conversation, ImagePart, Part, UserTurn
from echosight.engines import LLM, STT, TTS, Chunk, GenerationSummary
from echosight.engines.cascade.listener import Listener
from echosight.engines.omni.batch_scheduler import Rounds
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.worker import Worker
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript
from echosight.options import GenerateOptions

if TYPE_CHECKING:
    from echosight.engines.omni.conversation_cache import View
    from echosight.engines.omni.generation import Answer, Wish
    from echosight.engines.omni.model_runner import Stage

DEFAULT_REPLY_TOKENS = 1024


class OmniEngine:
    """A model that hears while the user speaks. `build` loads it, in the thread that then owns it.

    `transcriber`, where given, hears along, for the user's words in writing: the model itself writes none.
    `seed` makes answers repeatable. Voices it does not have are spoken in its first one; speed, reference voices and
    tools are not for it.
    """

    output_rate = 24_000
    llm: LLM | None = None
    tts: TTS | None = None

    def __init__(
        self,
        name: str,
        build: Callable[[], Stage],
        *,
        capacity: int,
        transcriber: STT | None = None,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.voices: tuple[str, ...] = ()
        self.stt = transcriber
        self.loading = LoadProgress(name)
        self._build = build
        self._listener = Listener(transcriber) if transcriber is not None else None
        self._seed = seed
        self._worker = Worker("omni")
        self._stage: Stage
        self._rounds: Rounds[Answer] = Rounds(self._advance, lambda answer: answer.done)
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._needed: dict[str, tuple[str, int]] = {}
        """Of each conversation: the open turn, and the samples of it with which there is more to compute."""

    async def start(self) -> None:
        self._stage = await self._worker.call(lambda: self.loading.run(self._build))
        self.voices = self._stage.model.speakers
        if self._listener is not None:
            self.loading.tell(self._listener.transcriber.name, None)
            await self._listener.transcriber.start()
        self._running = asyncio.create_task(self._rounds.run(), name="omni rounds")

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        if self._listener is not None:
            await self._listener.transcriber.close()
        self._closed = True
        await self._worker.close()

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        turn = conversation.pending_turn
        if turn is None:
            return None
        if self._is_due(conversation.id, turn, part):
            view = _view(conversation, self._stage.model.preamble, turn)
            with _failing():
                needed = await self._worker.call(lambda: self._stage.follow(view))
            self._needed[conversation.id] = (turn.id, needed)
        if self._listener is None or not isinstance(part, AudioPart):
            return None
        return await self._listener.hear(conversation, turn, part.pcm or b"")

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        return await self._listener.finalize_transcript(conversation, turn) if self._listener is not None else None

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        stage = self._stage
        if self._listener is not None:
            await self._listener.tidy(conversation)
        wish = self._wish(conversation, options)
        view = _view(conversation, stage.model.preamble, None)
        begun: list[Answer] = []
        try:
            with _failing():
                await self._worker.call(lambda: begun.append(stage.begin(view, wish)))
                async with aclosing(self._rounds.read(begun[0])) as pieces:
                    async for piece in pieces:
                        yield _signed(piece, self.name)
        finally:
            if not self._closed:
                # In the model's thread, so behind a step or a beginning that a cancelled reader left running.
                await asyncio.shield(self._worker.call(lambda: stage.end(view.id, begun)))

    async def release(self, conversation_id: str) -> None:
        self._needed.pop(conversation_id, None)
        if self._listener is not None:
            await self._listener.release(conversation_id)
        await self._worker.call(lambda: self._stage.release(conversation_id))

    async def _advance(self, answers: Sequence[Answer]) -> list[list[Chunk]]:
        return await self._worker.call(lambda: self._stage.advance(answers))

    def _is_due(self, conversation_id: str, turn: UserTurn, part: Part) -> bool:
        """Whether there is something to compute: what came before the turn, a picture, a window of the encoder."""
        known, needed = self._needed.get(conversation_id, ("", 0))
        if known != turn.id or isinstance(part, ImagePart):
            return True
        return isinstance(part, AudioPart) and turn.duration_ms * INPUT_SAMPLE_RATE // 1000 >= needed

    def _wish(self, conversation: Conversation, options: GenerateOptions) -> Wish:
        from echosight.engines.omni.generation import Wish
        from echosight.engines.runtime.sampling import Taste

        model = self._stage.model
        known = {voice.lower(): voice for voice in self.voices}
        speaker = known.get((options.voice or "").lower(), next(iter(self.voices), None))
        default = model.text_taste
        taste = Taste(
            default.temperature if options.temperature is None else options.temperature,
            default.top_p if options.top_p is None else options.top_p,
            default.top_k,
        )
        wanted = options.instructions if options.instructions != conversation.instructions else None
        language = options.language if options.language != conversation.language else None
        return Wish(
            taste,
            options.max_output_tokens or DEFAULT_REPLY_TOKENS,
            speaker if options.speech else None,
            instructions=_lines(wanted, _in_language(language)) or None,
            seed=self._seed,
        )


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """What torch raises (out of memory, say) is the failure of a turn."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise EngineFailure(f"The model failed: {error}") from error


def _view(conversation: Conversation, preamble: str, turn: UserTurn | None) -> View:
    from echosight.engines.omni.conversation_cache import View

    system = _lines(preamble, conversation.instructions, _in_language(conversation.language))
    return View(conversation.id, tuple(conversation.items), system, turn.to_item() if turn is not None else None)


def _in_language(language: str | None) -> str | None:
    return f"Answer in the language {language}." if language else None


def _lines(*lines: str | None) -> str:
    return "\n".join(line for line in lines if line)


def _signed(piece: Chunk, name: str) -> Chunk:
    return GenerationSummary(piece.usage, piece.finish, (name,)) if isinstance(piece, GenerationSummary) else piece
