"""What both model families share: prefill and decode steps, with every position explicit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.models.batched_kv_cache import BatchedKvCache, DecodeStep
from echosight.engines.omni.models.encoders import Encoders
from echosight.engines.omni.models.kv_caches import KvCaches
from echosight.engines.omni.models.segments import Segment
from echosight.engines.omni.models.state import Limits, TalkerState, ThinkerState
from echosight.engines.omni.models.tokens import ChatTokens
from echosight.engines.omni.vocoder import Vocoder
from echosight.engines.runtime.sampling import (
    BatchSamplingParams,
    Rng,
    SamplingParams,
    apply_repetition_penalty,
    sample,
)


class OmniModel(ABC):
    """A loaded model and its processors. Only the thread that owns the model calls it, inside inference mode.

    Shapes: b is the batch, n tokens, hidden the thinker's width, width the talker's. Tensors are on the model's device
    and in its dtype unless stated otherwise; ids and positions are int64.
    """

    codec_frame_ms: float
    """Milliseconds of speech in a codec frame."""
    audio_token: int
    image_token: int
    speakers: tuple[str, ...]
    speech_sampling: SamplingParams
    codec_stop_tokens: frozenset[int]
    """Codes that end the speech."""
    suppressed_codes: torch.Tensor
    """(vocabulary,) bool: codes that are never sampled."""
    preamble: str = ""
    """The required beginning of the system prompt."""
    codebooks: int = 1
    output_rate = 24_000
    """Hz."""

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: GraphRecorder
    ) -> None:
        self.model = model
        self.thinker = model.thinker
        self.has_talker: bool = model.has_talker
        self.talker: Any = model.talker if self.has_talker else None
        self.tokens = ChatTokens(tokenizer)
        self.encoders = self._new_encoders(extractor, images)
        self.device: torch.device = model.thinker.device
        self.dtype: torch.dtype = model.thinker.dtype
        self.limits = limits
        self.recorder = recorder
        # The vocoder runs on another stream, which must not share memory with this one.
        self.vocoder_recorder = recorder.fork()
        stop_tokens = (self.tokens.end, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.text_stop_tokens = frozenset(token for token in stop_tokens if token is not None)
        self.text_sampling = SamplingParams.from_generation_config(getattr(model.thinker, "generation_config", None))
        self.thinker_batch = self._new_batch(model.thinker.config.text_config, limits.context_tokens)
        if self.has_talker:
            length = limits.context_tokens + limits.speech_frames
            self.talker_batch = self._new_batch(self._talker_config(), length)

    def _new_batch(self, config: Any, length: int) -> BatchedKvCache:
        fixed = self.device.type != "cpu"
        return BatchedKvCache(self.device, self.dtype, config, rows=self.limits.batch_size, length=length, fixed=fixed)

    @abstractmethod
    def _new_encoders(self, extractor: Any, images: Any) -> Encoders:
        """The encoders, with the window of this family."""

    # --- prefill ----------------------------------------------------------------------------------

    @abstractmethod
    def prefill(self, kv: KvCaches, segments: Sequence[Segment]) -> torch.Tensor:
        """Compute segments into both caches. Returns the thinker's last hidden state (1, hidden)."""

    @abstractmethod
    def talker_reads(self, role: str) -> bool:
        """Whether the talker's cache holds the messages of this role."""

    @abstractmethod
    def append_reply(self, kv: KvCaches, talker_inputs: torch.Tensor) -> None:
        """Append a reply to the talker's cache, at `kv.end`: `talker_inputs` (n, width), one for each text token."""

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Thinker embeddings (n, hidden)."""
        embeddings: torch.Tensor = self.thinker.get_input_embeddings()(torch.tensor(ids, device=self.device))
        return embeddings

    def concat(self, segments: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The segments as one: embeddings (1, n, hidden), is_feature (n,) bool, and positions (3, 1, n)."""
        ids = torch.tensor([token for segment in segments for token in segment.ids])
        is_feature = torch.tensor([t == s.placeholder for s in segments for t in s.ids]).to(self.device)
        embeddings = self.thinker.get_input_embeddings()(ids.to(self.device))
        features = [segment.features for segment in segments if segment.features is not None]
        if features:
            embeddings = embeddings.clone()
            embeddings[is_feature] = torch.cat(features).to(embeddings.dtype)
        positions = torch.cat([segment.positions for segment in segments], 1)[:, None].to(self.device)
        return embeddings[None], is_feature, positions

    # --- decode -----------------------------------------------------------------------------------

    def sample_first_token(self, hidden: torch.Tensor, rng: Rng, sampling: SamplingParams) -> int:
        """The reply's first token, from the prompt's last hidden state (1, hidden)."""
        uniform = torch.tensor(rng.draw(), device=self.device)
        params = BatchSamplingParams.stack([sampling], self.device)
        return int(sample(self.thinker.lm_head(hidden), uniform, params)[0])

    def step_thinker(self, states: Sequence[ThinkerState]) -> torch.Tensor:
        """Compute each state's token and sample the next one. Returns the talker's inputs for the computed tokens,
        (len(states), width).
        """
        step = self.thinker_batch.step(states)
        sampled, talker_inputs = self._run_thinker(
            step,
            torch.tensor(step.scatter([s.token for s in states], 0), device=self.device),
            torch.tensor(step.scatter([s.position for s in states], 0), device=self.device),
            torch.tensor(step.scatter([s.rng.draw()[0] for s in states], 0.0), device=self.device),
            BatchSamplingParams.stack(step.scatter([s.sampling for s in states], SamplingParams()), self.device),
        )
        tokens = sampled.tolist()
        for state, index in zip(states, step.indices, strict=True):
            state.token = tokens[index]
            state.position += 1
        return talker_inputs[step.indices]

    def step_talker(self, states: Sequence[TalkerState], talker_inputs: torch.Tensor) -> None:
        """One talker step: each state takes its input (len(states), width) and gets a codec frame, or ends."""
        step = self.talker_batch.step(states)
        owners = step.owners()
        uniform = step.scatter([s.rng.draw(self.codebooks) for s in states], [0.0] * self.codebooks)
        frames, embeddings, seen_codes = self._run_talker(
            step,
            (torch.stack([s.frame_embedding for s in states]) + talker_inputs)[owners],
            torch.tensor(step.scatter([s.position for s in states], 0), device=self.device),
            torch.stack([s.seen_codes for s in states])[owners],
            torch.tensor(uniform, device=self.device),
            BatchSamplingParams.stack(step.scatter([s.sampling for s in states], SamplingParams()), self.device),
        )
        codes = frames.tolist()
        for state, index in zip(states, step.indices, strict=True):
            state.position += 1
            state.frame_embedding, state.seen_codes = embeddings[index], seen_codes[index]
            state.ended = codes[index][0] in self.codec_stop_tokens
            if not state.ended:
                state.frames.append(tuple(codes[index]))

    def record_steps(self) -> None:
        """Record the graphs of all steps, so that no reply waits for a recording. On a CPU there are none."""
        if not self.thinker_batch.fixed:
            return
        for step in self.thinker_batch.dummy_steps():
            zeros = torch.zeros_like(step.rows)
            self._run_thinker(step, zeros, zeros, zeros.float(), self._greedy(len(zeros)))
        if not self.has_talker:
            return
        width, codes = self.talker.get_input_embeddings().weight.shape[::-1]
        for step in self.talker_batch.dummy_steps():
            zeros = torch.zeros_like(step.rows)
            inputs = torch.zeros(len(zeros), width, dtype=self.dtype, device=self.device)
            seen_codes = torch.zeros(len(zeros), codes, dtype=torch.bool, device=self.device)
            uniform = torch.zeros(len(zeros), self.codebooks, device=self.device)
            self._run_talker(step, inputs, zeros, seen_codes, uniform, self._greedy(len(zeros)))

    def _greedy(self, rows: int) -> BatchSamplingParams:
        return BatchSamplingParams.stack([SamplingParams()] * rows, self.device)

    def _run_thinker(
        self,
        step: DecodeStep,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        uniform: torch.Tensor,
        sampling: BatchSamplingParams,
    ) -> tuple[torch.Tensor, ...]:
        """The whole batch (b): next tokens (b,) and talker inputs (b, width), by a graph where there is one."""

        def compute(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rows, starts, tokens, positions, uniform, *params = inputs
            logits, talker_inputs = self._thinker_step(tokens, positions, step.with_tensors(rows, starts))
            return sample(logits, uniform, BatchSamplingParams(*params)), talker_inputs

        inputs = (step.rows, step.starts, tokens, positions, uniform, *sampling.tensors)
        return self.recorder.run("thinker", step.shape, compute, *inputs)

    def _run_talker(
        self,
        step: DecodeStep,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        seen_codes: torch.Tensor,
        uniform: torch.Tensor,
        sampling: BatchSamplingParams,
    ) -> tuple[torch.Tensor, ...]:
        """The whole batch (b): see `_talker_step`; by a graph where there is one."""

        def compute(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rows, starts, inputs, positions, seen_codes, uniform, *params = tensors
            cache = step.with_tensors(rows, starts)
            return self._talker_step(inputs, positions, seen_codes, uniform, BatchSamplingParams(*params), cache)

        tensors = (step.rows, step.starts, inputs, positions, seen_codes, uniform, *sampling.tensors)
        return self.recorder.run("talker", step.shape, compute, *tensors)

    @abstractmethod
    def start_talker(self, kv: KvCaches, speaker: str, rng: Rng, sampling: SamplingParams) -> TalkerState:
        """A row in `talker_batch`, prefilled up to the first text token of a reply. `kv` stays as it is."""

    @abstractmethod
    def talker_end_input(self) -> torch.Tensor:
        """The talker's input behind the reply's last token, (1, width)."""

    @abstractmethod
    def talker_pad_input(self) -> torch.Tensor:
        """The talker's input after that until it ends, (1, width)."""

    @abstractmethod
    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        """A vocoder for one reply."""

    @abstractmethod
    def _talker_config(self) -> Any:
        """The talker's text config."""

    @abstractmethod
    def _thinker_step(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: DecodeStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and positions (b,) to logits (b, vocabulary) and talker inputs (b, width)."""

    @abstractmethod
    def _talker_step(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        seen_codes: torch.Tensor,
        uniform: torch.Tensor,
        sampling: BatchSamplingParams,
        cache: DecodeStep,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs (b, width), positions (b,), `seen_codes` (b, vocabulary) bool and `uniform` (b, codebooks) to codec
        frames (b, codebooks), their embeddings (b, width) and the new `seen_codes`.
        """

    def sample_code(
        self, logits: torch.Tensor, seen_codes: torch.Tensor, uniform: torch.Tensor, sampling: BatchSamplingParams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A code for each row of the talker's logits (b, vocabulary): codes (b,), and `seen_codes` with them added."""
        logits = apply_repetition_penalty(logits.float(), seen_codes, sampling.repetition_penalty)
        codes = sample(logits.masked_fill(self.suppressed_codes, -float("inf")), uniform, sampling)
        return codes, seen_codes.scatter(1, codes[:, None], True)
