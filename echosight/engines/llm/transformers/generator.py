"""A model that writes replies, a token a step. All of it happens in the model's thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch

from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.llm.transformers.checkpoint import Checkpoint
from echosight.engines.llm.transformers.kv_cache import Mind
from echosight.engines.llm.transformers.output_parser import Markup
from echosight.engines.llm.transformers.prompt import Request, Run, Template
from echosight.engines.runtime.sampling import Dice, Taste, Tastes, choose, penalise
from echosight.events import Usage
from echosight.options import GenerateOptions

REPLY_TOKENS = 1024

Pieces = list[TextChunk | ToolCallChunk | GenerationSummary]


class Author:
    """The model, its template and its memory. `limit_bytes` bounds what it remembers of conversations."""

    def __init__(self, checkpoint: Checkpoint, max_turns: int, limit_bytes: int) -> None:
        self.template = Template(checkpoint.tokenizer, checkpoint.processor, max_turns)
        self.mind = Mind(checkpoint.model, limit_bytes)
        self._tokenizer = checkpoint.tokenizer
        self._ends = checkpoint.ends
        self._taste = checkpoint.taste

    def forget(self, conversation_id: str) -> None:
        self.mind.forget(conversation_id)

    def read_ahead(self, request: Request, said: str) -> Generator[None, None, None]:
        """Read the prompt as far as it is sure while the user goes on after `said`."""
        if not self.mind.rolls_back:
            # What is read too much could not be forgotten again.
            return
        runs = self.template.beginning(request, said)
        if not runs or _size(runs) > self.mind.context - self._limit(None):
            return
        with self.mind.borrow(request.conversation.id) as memory:
            kept = self.mind.roll_back(memory, runs, whole=False)
            for _ in self.mind.read(memory, runs, kept):
                yield

    def write(
        self, request: Request, options: GenerateOptions, seed: int | None = None
    ) -> Generator[Pieces, None, None]:
        """What each step has to say, a `GenerationSummary` last. Closing it keeps what was read and written so far."""
        limit = self._limit(options.max_output_tokens)
        prompt, runs = self.template.prompt(request, self.mind.context - limit)
        markup = Markup(prompt, self._tokenizer.all_special_tokens)
        text = _Text(self._tokenizer)
        finish, written = "length", 0
        with self.mind.borrow(request.conversation.id) as memory:
            kept = self.mind.roll_back(memory, runs)
            logits = torch.empty(0)
            for logits in self.mind.read(memory, runs, kept):  # noqa: B007
                yield []
            chooser = _Chooser(self._told(options), runs, Dice(seed), logits)
            while written < limit:
                token = chooser.choose(logits)
                if token in self._ends:
                    finish = "stop"
                    break
                written += 1
                yield [*markup.feed(text.add(token))]
                logits = self.mind.go_on(memory, token)
        usage = _usage(runs, kept, written)
        yield [*markup.feed(text.rest()), *markup.finish(), GenerationSummary(usage, finish)]

    def _limit(self, asked: int | None) -> int:
        return min(asked or REPLY_TOKENS, self.mind.context // 2)

    def _told(self, options: GenerateOptions) -> Taste:
        taste = self._taste
        if options.temperature is not None:
            taste = replace(taste, temperature=options.temperature)
        return taste if options.top_p is None else replace(taste, top_p=options.top_p)


class _Text:
    """Tokens as text, as soon as what they say is sure: a letter may be of several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begun = self._shown = 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._new(sure=True)

    def rest(self) -> str:
        return self._new(sure=False)

    def _new(self, sure: bool) -> str:
        # From a token before, as the first of a text may lose its blank.
        before = self._decode(self._ids[self._begun : self._shown])
        now = self._decode(self._ids[self._begun :])
        if sure and now.endswith("\ufffd"):
            return ""
        self._begun, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _Chooser:
    """Chooses the tokens of one reply."""

    def __init__(self, taste: Taste, runs: Sequence[Run], dice: Dice, like: torch.Tensor) -> None:
        self._tastes = Tastes.of([taste], like.device)
        self._dice = dice
        self._seen: torch.Tensor | None = None
        if taste.repetition_penalty != 1.0:
            self._seen = torch.zeros(1, like.shape[-1], dtype=torch.bool, device=like.device)
            self._seen[0, [token for run in runs for token in run.ids]] = True

    def choose(self, logits: torch.Tensor) -> int:
        row = logits[None]
        if self._seen is not None:
            row = penalise(row, self._seen, self._tastes.repetition_penalty)
        token = int(choose(row, torch.tensor(self._dice.throw(), device=row.device), self._tastes)[0])
        if self._seen is not None:
            self._seen[0, token] = True
        return token


def _size(runs: Sequence[Run]) -> int:
    return sum(len(run.ids) for run in runs)


def _usage(runs: Sequence[Run], kept: int, written: int) -> Usage:
    seen = sum(len(run.ids) for run in runs if run.key)
    return Usage(input_text=_size(runs) - seen, input_image=seen, cached=kept, output_text=written)
