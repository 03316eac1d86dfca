"""The model with the caches of its conversations: everything that runs in the model's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from echosight.engines import Chunk
from echosight.engines.omni.conversation_cache import ConversationCache, ConversationSnapshot
from echosight.engines.omni.generation import Generation, GenerationRequest, step
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.vocoder.side_stream import SideStream
from echosight.errors import EngineFull

WARM_UP_FRAMES = 150
"""Codec frames of a warm-up, in which every shape of the vocoder's windows occurs."""


class ModelRunner:
    """Conversations on one model. Only the thread that owns the model calls the methods.

    At most `capacity` conversations are cached; `reply_tokens` of each one's context are reserved for the reply.
    """

    def __init__(self, model: OmniModel, capacity: int, reply_tokens: int) -> None:
        self.model = model
        self._capacity = capacity
        self._prompt_limit = model.limits.context_tokens - reply_tokens
        self._caches: dict[str, ConversationCache] = {}
        """By conversation id, the least recently used first."""
        self._generating: set[str] = set()
        self._side_stream = SideStream(model.device)

    def warm_up(self) -> None:
        """Record all CUDA graphs, so that no reply waits for a recording."""
        with torch.inference_mode():
            self.model.record_steps()
            if self.model.recorder.enabled and self.model.has_talker:
                for audio in self._side_stream.run(self._vocode_dummy_frames):
                    audio.pcm()

    def _vocode_dummy_frames(self) -> list[torch.Tensor]:
        frames = [(0,) * self.model.codebooks] * WARM_UP_FRAMES
        vocoder = self.model.new_vocoder(self.model.speakers[0], 0)
        return [chunk for end in range(1, len(frames)) for chunk in vocoder.push(frames[:end], final=False)]

    def prefill(self, snapshot: ConversationSnapshot) -> int:
        """Compute the whole windows of the pending turn. Returns the samples of it with which there is more to compute.

        Raises `EngineFailure` where the turn does not fit, and `EngineFull`.
        """
        with torch.inference_mode(), self._drop_on_failure(snapshot.id):
            cache = self._cache_of(snapshot.id)
            cache.prefill_turn(snapshot)
            return cache.samples_needed

    def start(self, snapshot: ConversationSnapshot, request: GenerationRequest) -> Generation:
        """Start a reply; `finish` must follow. Raises `EngineFailure` and `EngineFull`."""
        with torch.inference_mode(), self._drop_on_failure(snapshot.id):
            cache = self._cache_of(snapshot.id)
            generation = Generation(self.model, cache, snapshot, request, self._side_stream)
            try:
                generation.start()
            except BaseException:
                generation.close()
                raise
            self._generating.add(snapshot.id)
            return generation

    def step(self, generations: Sequence[Generation]) -> list[list[Chunk]]:
        """One step of these generations together; returns the new chunks of each."""
        with torch.inference_mode():
            running = [generation for generation in generations if not generation.done]
            if running:
                step(self.model, running)
            return [generation.take_chunks() for generation in generations]

    def finish(self, conversation_id: str, generations: Sequence[Generation]) -> None:
        """Close the conversation's generations, complete or not."""
        with torch.inference_mode():
            for generation in generations:
                generation.close()
        self._generating.discard(conversation_id)

    def release(self, conversation_id: str) -> None:
        """Drop the conversation's cache; unknown ids are fine."""
        self._caches.pop(conversation_id, None)

    @contextmanager
    def _drop_on_failure(self, conversation_id: str) -> Iterator[None]:
        """An exception may leave layers of different lengths, which nothing could detect later: drop the cache."""
        try:
            yield
        except BaseException:
            self._caches.pop(conversation_id, None)
            raise

    def _cache_of(self, conversation_id: str) -> ConversationCache:
        """The conversation's cache, now the most recently used. Evicts the least recently used idle one if necessary.

        Raises `EngineFull` where all are generating.
        """
        cache = self._caches.pop(conversation_id, None)
        if cache is None:
            if len(self._caches) >= self._capacity:
                idle = next((key for key in self._caches if key not in self._generating), None)
                if idle is None:
                    raise EngineFull
                del self._caches[idle]
            cache = ConversationCache(self.model, self._prompt_limit)
        self._caches[conversation_id] = cache
        return cache
