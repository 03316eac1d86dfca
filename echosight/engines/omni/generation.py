"""One reply: thinker, talker and vocoder in lock-step, so that speech starts before the text ends.

The talker needs exactly one text token for each codec frame, so it can run one token behind the thinker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import ConversationCache, ConversationSnapshot
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.state import TalkerState, ThinkerState
from echosight.engines.omni.models.tokens import TextDecoder
from echosight.engines.omni.vocoder.side_stream import PendingAudio, SideStream
from echosight.engines.omni.word_timer import TalkerWordTimer
from echosight.engines.runtime.sampling import Rng, SamplingParams
from echosight.events import Usage


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """How to generate a reply. `speaker` None means text only; `instructions` are for this reply alone.

    `speech_sampling` None means the model's own parameters.
    """

    sampling: SamplingParams
    max_tokens: int
    speaker: str | None = None
    speech_sampling: SamplingParams | None = None
    instructions: str | None = None
    seed: int | None = None


class Generation:
    """A reply in progress. The model's thread owns it and calls every method, `start` first and `close` last."""

    def __init__(
        self,
        model: OmniModel,
        cache: ConversationCache,
        snapshot: ConversationSnapshot,
        request: GenerationRequest,
        side_stream: SideStream,
    ) -> None:
        self._model = model
        self._cache = cache
        self._snapshot = snapshot
        self._request = request
        self._rng = Rng(request.seed)
        self._side_stream = side_stream
        self._decoder = TextDecoder(model.tokens)
        self._chunks: list[Chunk] = []
        self._talker_inputs: list[torch.Tensor] = []
        """For each computed text token, (1, width)."""
        self._finish = "stop"
        self._started = False
        self._usage = Usage()
        self.tokens: list[int] = []
        self.speech: SpeechOutput | None = None
        self.text_done = False
        """The text is complete."""
        self.done = False
        """Text and speech are complete, or the generation was closed."""
        self.thinker: ThinkerState

    def start(self) -> None:
        """Bring the caches in line with the conversation and sample the first token. Raises `EngineFailure`."""
        model, context, request = self._model, self._cache.context, self._request
        cached = context.computed
        self._start, hidden = self._cache.begin_reply(self._snapshot, request.instructions)
        end = context.end
        self._usage = Usage(end.text_tokens, end.audio_tokens, end.image_tokens, cached=min(cached, end.thinker_tokens))
        self._started = True
        self._max_tokens = min(request.max_tokens, model.limits.context_tokens - end.thinker_tokens - 1)
        self._prompt_tokens = end.thinker_tokens
        self.thinker = ThinkerState(-1, end.thinker_position, self._rng, request.sampling)
        self.thinker.token = model.sample_first_token(hidden, self._rng, request.sampling)
        model.thinker_batch.add(self.thinker, context.kv.thinker, end.thinker_tokens)
        if request.speaker is not None and model.has_talker:
            rng = Rng(None if request.seed is None else request.seed + 1)
            sampling = request.speech_sampling or model.speech_sampling
            talker = model.start_talker(context.kv, request.speaker, rng, sampling)
            self.speech = SpeechOutput(model, talker, request.speaker, request.seed, self._side_stream)
        self._on_sampled(self.thinker.token)

    def on_token(self, talker_input: torch.Tensor) -> None:
        """The thinker computed a token, with its `talker_input` (1, width), and sampled the next into `thinker`."""
        self._talker_inputs.append(talker_input)
        if len(self.tokens) >= self._max_tokens:
            self._end_text("length")
        else:
            self._on_sampled(self.thinker.token)

    def next_talker_input(self) -> torch.Tensor | None:
        """The talker's next input (1, width); None where it must wait for the thinker, or has ended."""
        speech = self.speech
        if speech is None or speech.ended:
            return None
        index = speech.steps
        if index < len(self._talker_inputs):
            return self._talker_inputs[index]
        if not self.text_done:
            return None
        if not self._talker_inputs:
            speech.skip()
            return None
        is_first = index == len(self._talker_inputs)
        return self._model.talker_end_input() if is_first else self._model.talker_pad_input()

    def collect(self) -> None:
        """After a step: collect speech that is ready, and complete the reply if nothing is left to do."""
        if self.speech is not None:
            self._chunks += self.speech.collect()
        if self.text_done and not self.done and (self.speech is None or self.speech.delivered):
            self._complete()

    def take_chunks(self) -> list[Chunk]:
        """The chunks since the last call."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def close(self) -> None:
        """Remove the batch rows. Where the reply is incomplete, rewind the caches to the conversation."""
        self._remove_rows()
        if self._started and not self.done:
            self._cache.context.rewind(self._start)
        self.done = True

    def _on_sampled(self, token: int) -> None:
        if token in self._model.text_stop_tokens:
            self._end_text("stop")
            return
        text = self._decoder.push(token)
        if self.speech is not None:
            self.speech.words.add(text, len(self.tokens))
        self.tokens.append(token)
        self._emit_text(text)

    def _emit_text(self, text: str) -> None:
        if text:
            self._chunks.append(TextChunk(text))

    def _end_text(self, finish: str) -> None:
        self.text_done = True
        self._finish = finish
        rest = self._decoder.flush()
        if self.speech is not None:
            self.speech.words.add(rest, len(self.tokens))
        self._emit_text(rest)
        self._model.thinker_batch.export(self.thinker, self._cache.context.kv.thinker, self._prompt_tokens)
        self._model.thinker_batch.remove(self.thinker)

    def _complete(self) -> None:
        model, context = self._model, self._cache.context
        self._remove_rows()
        if self._talker_inputs:
            model.append_reply(context.kv, torch.cat(self._talker_inputs))
            context.advance_reply(len(self._talker_inputs))
        context.write(model.tokens.footer, "assistant", bounded=False)
        context.flush()
        self.done = True
        if self._request.instructions is None:
            self._cache.keep_reply(self._decoder.text)
        else:
            # The reply was computed behind instructions that the conversation does not have.
            context.rewind(self._start)
        usage = self._usage
        frames = self.speech.frames if self.speech is not None else 0
        usage = Usage(usage.input_text, usage.input_audio, usage.input_image, usage.cached, len(self.tokens), frames)
        self._chunks.append(GenerationSummary(usage, self._finish))

    def _remove_rows(self) -> None:
        if self._started:
            self._model.thinker_batch.remove(self.thinker)
            if self.speech is not None:
                self.speech.remove_row()


class SpeechOutput:
    """The speech of a reply: its talker state, its vocoder, and audio that the GPU may still be computing."""

    def __init__(
        self, model: OmniModel, talker: TalkerState, speaker: str, seed: int | None, side_stream: SideStream
    ) -> None:
        self.talker = talker
        self.words = TalkerWordTimer(model.codec_frame_ms)
        self.steps = 0
        """Inputs that the talker has taken."""
        self.ended = False
        """The talker makes no more frames."""
        self.delivered = False
        """The talker has ended, and all audio was collected."""
        self._model = model
        self._vocoder = model.new_vocoder(speaker, seed)
        self._side_stream = side_stream
        self._pending: list[PendingAudio] = []
        self._samples = 0

    @property
    def frames(self) -> int:
        """Codec frames so far."""
        return len(self.talker.frames)

    def skip(self) -> None:
        """End without speech, because there is no text."""
        self.ended = True
        self.remove_row()

    def on_step(self) -> None:
        """The talker made a step: vocode the frames that are complete."""
        self.steps += 1
        self.ended = self.talker.ended or self.frames >= self._model.limits.speech_frames
        if self.ended:
            self.remove_row()
        self._pending += self._side_stream.run(lambda: self._vocoder.push(self.talker.frames, final=self.ended))

    def collect(self) -> list[Chunk]:
        """The audio that is ready; waits for the rest once the talker has ended."""
        chunks: list[Chunk] = []
        while self._pending and (self.ended or self._pending[0].ready):
            pcm = self._pending.pop(0).pcm()
            start, self._samples = self._samples, self._samples + len(pcm) // 2
            final = self.ended and not self._pending
            words = self.words.words_between(self._to_ms(start), self._to_ms(self._samples), final=final)
            chunks.append(SpeechChunk(pcm, words))
        self.delivered = self.ended and not self._pending
        return chunks

    def remove_row(self) -> None:
        """Remove the row from the talker's batch, if it is still there."""
        self._model.talker_batch.remove(self.talker)

    def _to_ms(self, samples: int) -> float:
        return samples * 1000 / self._model.output_rate


def step(model: OmniModel, generations: Sequence[Generation]) -> None:
    """One step of all these generations together: a text token where the text goes on, a codec frame where possible."""
    thinking = [generation for generation in generations if not generation.text_done]
    if thinking:
        talker_inputs = model.step_thinker([generation.thinker for generation in thinking])
        for generation, talker_input in zip(thinking, talker_inputs, strict=True):
            generation.on_token(talker_input[None])
    talking = [
        (speech, talker_input)
        for generation in generations
        if (talker_input := generation.next_talker_input()) is not None and (speech := generation.speech) is not None
    ]
    if talking:
        model.step_talker([speech.talker for speech, _ in talking], torch.cat([each for _, each in talking]))
        for speech, _ in talking:
            speech.on_step()
    for generation in generations:
        generation.collect()
