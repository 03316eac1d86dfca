"""Generates replies token by token. Everything here runs in the model's thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch

from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.checkpoint import Checkpoint
from echosight.engines.llm.transformers.kv_cache import CachedModel
from echosight.engines.llm.transformers.output_parser import OutputParser
from echosight.engines.llm.transformers.prompt import ChatTemplate, PromptRequest, PromptSegment
from echosight.engines.runtime.sampling import (
    BatchSamplingParams,
    Rng,
    SamplingParams,
    apply_repetition_penalty,
    sample,
)
from echosight.events import Usage
from echosight.options import GenerateOptions

DEFAULT_REPLY_TOKENS = 1024

Chunks = list[TextChunk | ToolCallChunk | GenerationSummary]


class TextGenerator:
    """The model, its chat template and its KV caches, of which `limit_bytes` are kept.

    `max_turns` is the number of the user's last turns that a prompt shows.
    """

    def __init__(self, checkpoint: Checkpoint, max_turns: int, limit_bytes: int) -> None:
        self.template = ChatTemplate(checkpoint.tokenizer, checkpoint.processor, max_turns)
        self.model = CachedModel(checkpoint.model, limit_bytes)
        self._tokenizer = checkpoint.tokenizer
        self._stop_tokens = checkpoint.stop_tokens
        self._sampling_params = checkpoint.sampling_params

    def release(self, conversation_id: str) -> None:
        """Drop the conversation's KV cache."""
        self.model.release(conversation_id)

    def prefill(self, request: PromptRequest, partial: str) -> Generator[None, None, None]:
        """Compute the prompt up to `partial`, the words that the user has spoken so far; one step for each `next`."""
        if not self.model.can_rewind:
            # A wrong partial transcript could not be removed from the cache again.
            return
        segments = self.template.stable_prefix(request, partial)
        if not segments or _count(segments) > self.model.context_size - self._reply_limit(None):
            return
        with self.model.lease(request.conversation.id) as cache:
            cached = self.model.rewind(cache, segments, recompute_last=False)
            for _ in self.model.prefill(cache, segments, cached):
                yield

    def generate(
        self, request: PromptRequest, options: GenerateOptions, seed: int | None = None
    ) -> Generator[Chunks, None, None]:
        """The reply; each step yields its chunks, the last step a `GenerationSummary`.

        Closing the generator keeps the KV cache as far as it was computed. Raises `EngineFailure` where the last turn
        does not fit into the context.
        """
        limit = self._reply_limit(options.max_output_tokens)
        prompt, segments = self.template.prompt(request, self.model.context_size - limit)
        parser = OutputParser(prompt, self._tokenizer.all_special_tokens)
        detokenizer = _Detokenizer(self._tokenizer)
        finish, count = "length", 0
        with self.model.lease(request.conversation.id) as cache:
            cached = self.model.rewind(cache, segments)
            logits = torch.empty(0)
            for logits in self.model.prefill(cache, segments, cached):  # noqa: B007
                yield []
            sampler = _TokenSampler(self.sampling_params(options), segments, Rng(seed), logits)
            while count < limit:
                token = sampler.sample(logits)
                if token in self._stop_tokens:
                    finish = "stop"
                    break
                count += 1
                yield [*parser.feed(detokenizer.add(token))]
                logits = self.model.step(cache, token)
        usage = _usage(segments, cached, count)
        yield [*parser.feed(detokenizer.flush()), *parser.flush(), GenerationSummary(usage, finish)]

    def sampling_params(self, options: GenerateOptions) -> SamplingParams:
        """The checkpoint's recommendation, as far as `options` do not override it."""
        params = self._sampling_params
        if options.temperature is not None:
            params = replace(params, temperature=options.temperature)
        return params if options.top_p is None else replace(params, top_p=options.top_p)

    def _reply_limit(self, requested: int | None) -> int:
        return min(requested or DEFAULT_REPLY_TOKENS, self.model.context_size // 2)


class _Detokenizer:
    """Tokens to text deltas. A character may consist of several tokens; it is held back until it is complete.

    The two offsets are those of vLLM's incremental detokenization: text is decoded from the previous delta on, because
    tokenizers strip the space of a text's first token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._prefix_offset = self._read_offset = 0

    def add(self, token: int) -> str:
        """The text that the token completes."""
        self._ids.append(token)
        return self._delta(hold_incomplete=True)

    def flush(self) -> str:
        """At the end: the text that was held back, with U+FFFD for an incomplete character."""
        return self._delta(hold_incomplete=False)

    def _delta(self, hold_incomplete: bool) -> str:
        before = self._decode(self._ids[self._prefix_offset : self._read_offset])
        text = self._decode(self._ids[self._prefix_offset :])
        if hold_incomplete and text.endswith("\ufffd"):
            return ""
        self._prefix_offset, self._read_offset = self._read_offset, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _TokenSampler:
    """Samples the tokens of one reply. `logits` (v,) are those behind the prompt: they give the size and the device."""

    def __init__(
        self, params: SamplingParams, segments: Sequence[PromptSegment], rng: Rng, logits: torch.Tensor
    ) -> None:
        self._params = BatchSamplingParams.stack([params], logits.device)
        self._rng = rng
        self._seen: torch.Tensor | None = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(1, logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._seen[0, [token for segment in segments for token in segment.ids]] = True

    def sample(self, logits: torch.Tensor) -> int:
        """A token from `logits` (v,)."""
        row = logits[None]
        if self._seen is not None:
            row = apply_repetition_penalty(row, self._seen, self._params.repetition_penalty)
        token = int(sample(row, torch.tensor(self._rng.draw(), device=row.device), self._params)[0])
        if self._seen is not None:
            self._seen[0, token] = True
        return token


def _count(segments: Sequence[PromptSegment]) -> int:
    """Tokens of the segments."""
    return sum(len(segment.ids) for segment in segments)


def _usage(segments: Sequence[PromptSegment], cached: int, output: int) -> Usage:
    image_tokens = sum(len(segment.ids) for segment in segments if segment.image_hash)
    return Usage(
        input_text=_count(segments) - image_tokens, input_image=image_tokens, cached=cached, output_text=output
    )
