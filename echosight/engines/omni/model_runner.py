"""The model with everything that is said on it: all that happens in the model's own thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from echosight.engines import Chunk
from echosight.engines.omni.conversation_cache import Memory, View
from echosight.engines.omni.generation import Answer, Wish, advance
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.vocoder import SideStream
from echosight.errors import EngineFull

VOCODER_WARM_UP = 150


class Stage:
    """Conversations on one model. Every method runs in the thread that owns the model."""

    def __init__(self, model: OmniModel, capacity: int, reply_tokens: int) -> None:
        self.model = model
        self._capacity = capacity
        self._prompt_limit = model.limits.context - reply_tokens
        self._memories: dict[str, Memory] = {}
        self._answering: set[str] = set()
        self._aside = SideStream(model.device)

    def warm_up(self) -> None:
        """Have everything recorded that an answer would otherwise stop for."""
        with torch.inference_mode():
            self.model.record_steps()
            if self.model.recorder.enabled and self.model.talks:
                for samples in self._aside.run(self._vocode_nothing):
                    samples.pcm()

    def _vocode_nothing(self) -> list[torch.Tensor]:
        """Frames until every shape of window came up."""
        frames = [(0,) * self.model.codebooks] * VOCODER_WARM_UP
        vocoder = self.model.new_vocoder(self.model.speakers[0], 0)
        return [piece for end in range(1, len(frames)) for piece in vocoder.push(frames[:end], final=False)]

    def follow(self, view: View) -> int:
        """Compute what can be computed of the user's open turn; samples of it with which there is more to compute."""
        with torch.inference_mode(), self._whole(view.id):
            memory = self._memory(view.id)
            memory.follow(view)
            return memory.samples_needed

    def begin(self, view: View, wish: Wish) -> Answer:
        """Start an answer; `end` has to follow."""
        with torch.inference_mode(), self._whole(view.id):
            answer = Answer(self.model, self._memory(view.id), view, wish, self._aside)
            try:
                answer.begin()
            except BaseException:
                answer.end()
                raise
            self._answering.add(view.id)
            return answer

    def advance(self, answers: Sequence[Answer]) -> list[list[Chunk]]:
        """One step of these answers together; what each of them has to say."""
        with torch.inference_mode():
            live = [answer for answer in answers if not answer.done]
            if live:
                advance(self.model, live)
            return [answer.take() for answer in answers]

    def end(self, conversation_id: str, answers: Sequence[Answer]) -> None:
        """The conversation's answers are over, complete or not."""
        with torch.inference_mode():
            for answer in answers:
                answer.end()
        self._answering.discard(conversation_id)

    def release(self, conversation_id: str) -> None:
        self._memories.pop(conversation_id, None)

    @contextmanager
    def _whole(self, conversation_id: str) -> Iterator[None]:
        """Caches that broke off halfway cannot be told from whole ones, so they are given up."""
        try:
            yield
        except BaseException:
            self._memories.pop(conversation_id, None)
            raise

    def _memory(self, conversation_id: str) -> Memory:
        """The conversation's memory, now the most recently used; the one unused for longest makes room for it."""
        memory = self._memories.pop(conversation_id, None)
        if memory is None:
            if len(self._memories) >= self._capacity:
                idle = next((key for key in self._memories if key not in self._answering), None)
                if idle is None:
                    raise EngineFull
                del self._memories[idle]
            memory = Memory(self.model, self._prompt_limit)
        self._memories[conversation_id] = memory
        return memory
