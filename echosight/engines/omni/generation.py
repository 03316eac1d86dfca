"""One answer: thinker, talker and vocoder in lock-step, so that speech starts before the text ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import Memory, View
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.state import Mouth, Thought
from echosight.engines.omni.tokens import TextStream
from echosight.engines.omni.vocoder import Samples, SideStream
from echosight.engines.omni.word_timer import WordClock
from echosight.engines.runtime.sampling import Rng, SamplingParams
from echosight.events import Usage


@dataclass(frozen=True, slots=True)
class Wish:
    """How an answer is to be made. `speaker` None: in text only; `instructions` are for this answer alone."""

    taste: SamplingParams
    max_tokens: int
    speaker: str | None = None
    speech_taste: SamplingParams | None = None
    instructions: str | None = None
    seed: int | None = None


class Answer:
    """An answer in the making. Owned by the model's thread; `take` empties what it has to say so far."""

    def __init__(self, model: OmniModel, memory: Memory, view: View, wish: Wish, aside: SideStream) -> None:
        self._model = model
        self._memory = memory
        self._view = view
        self._wish = wish
        self._dice = Rng(wish.seed)
        self._aside = aside
        self._stream = TextStream(model.tokens)
        self._pieces: list[Chunk] = []
        self._cues: list[torch.Tensor] = []
        self.tokens: list[int] = []
        self._finish = "stop"
        self._begun = False
        self._usage = Usage()
        self._speech: Speech | None = None
        self.said = False
        """The text is complete."""
        self.done = False
        self.thought: Thought

    @property
    def speech(self) -> Speech | None:
        return self._speech

    def begin(self) -> None:
        """Bring the caches into line and sample the first token."""
        model, context = self._model, self._memory.context
        held = context.computed
        self._start, hidden = self._memory.prepare_reply(self._view, self._wish.instructions)
        at = context.at
        self._usage = Usage(at.text, at.audio, at.image, cached=min(held, at.thinker))
        self._begun = True
        self._room = min(self._wish.max_tokens, model.limits.context - at.thinker - 1)
        self._prompt = at.thinker
        self.thought = Thought(-1, at.position, self._dice, self._wish.taste)
        self.thought.token = model.first_token(hidden, self._dice, self._wish.taste)
        model.thinking.join(self.thought, context.thinker, at.thinker)
        if self._wish.speaker is not None and model.talks:
            dice = Rng(None if self._wish.seed is None else self._wish.seed + 1)
            taste = self._wish.speech_taste or model.speech_taste
            mouth = model.open_mouth(context, self._wish.speaker, dice, taste)
            self._speech = Speech(model, mouth, self._wish.speaker, self._wish.seed, self._aside)
        self._consider(self.thought.token)

    def heed(self, cue: torch.Tensor) -> None:
        """The token was computed: its cue (1, width), and the next token in `thought`."""
        self._cues.append(cue)
        if len(self.tokens) >= self._room:
            self._end_text("length")
        else:
            self._consider(self.thought.token)

    def next_cue(self) -> torch.Tensor | None:
        """What the talker is to be given now (1, width); None where it has to wait or has ended."""
        speech = self._speech
        if speech is None or speech.ended:
            return None
        at = speech.steps
        if at < len(self._cues):
            return self._cues[at]
        if not self.said:
            return None
        if not self._cues:
            speech.stay_silent()
            return None
        return self._model.cue_end() if at == len(self._cues) else self._model.cue_pad()

    def finalize_transcript(self) -> None:
        """After a step: collect speech, and finish where nothing is left to do."""
        if self._speech is not None:
            self._pieces += self._speech.collect()
        if self.said and not self.done and (self._speech is None or self._speech.delivered):
            self._complete()

    def take(self) -> list[Chunk]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> None:
        """Give the rows back. A reply that is not complete is as if it had never begun."""
        self._leave()
        if self._begun and not self.done:
            self._memory.context.back_to(self._start)
        self.done = True

    def _consider(self, token: int) -> None:
        if token in self._model.text_ends:
            self._end_text("stop")
            return
        text = self._stream.push(token)
        if self._speech is not None:
            self._speech.words.give(text, len(self.tokens))
        self.tokens.append(token)
        self._say(text)

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(TextChunk(text))

    def _end_text(self, finish: str) -> None:
        self.said = True
        self._finish = finish
        rest = self._stream.finish()
        if self._speech is not None:
            self._speech.words.give(rest, len(self.tokens))
        self._say(rest)
        self._model.thinking.hand_over(self.thought, self._memory.context.thinker, self._prompt)
        self._model.thinking.leave(self.thought)

    def _complete(self) -> None:
        model, context = self._model, self._memory.context
        self._leave()
        if self._cues:
            model.remember_reply(context, torch.cat(self._cues))
            context.took_reply(len(self._cues))
        context.write(model.tokens.footer, "assistant", bounded=False)
        context.flush()
        self.done = True
        if self._wish.instructions is None:
            self._memory.keep_reply(self._stream.text)
        else:
            # Those instructions are not part of the conversation, so this reply has to be read again without them.
            context.back_to(self._start)
        usage = self._usage
        frames = self._speech.frames if self._speech is not None else 0
        usage = Usage(usage.input_text, usage.input_audio, usage.input_image, usage.cached, len(self.tokens), frames)
        self._pieces.append(GenerationSummary(usage, self._finish))

    def _leave(self) -> None:
        if self._begun:
            self._model.thinking.leave(self.thought)
            if self._speech is not None:
                self._speech.leave()


class Speech:
    """The spoken side of an answer: a mouth, its vocoder, and samples on their way."""

    def __init__(self, model: OmniModel, mouth: Mouth, speaker: str, seed: int | None, aside: SideStream) -> None:
        self.mouth = mouth
        self.words = WordClock(model.frame_ms)
        self.steps = 0
        self._model = model
        self._vocoder = model.new_vocoder(speaker, seed)
        self._aside = aside
        self._coming: list[Samples] = []
        self._samples = 0
        self._ended = False
        self._delivered = False

    @property
    def frames(self) -> int:
        return len(self.mouth.frames)

    @property
    def ended(self) -> bool:
        """The talker has no more to say."""
        return self._ended

    @property
    def delivered(self) -> bool:
        """All samples have been collected."""
        return self._delivered

    def stay_silent(self) -> None:
        """There is no text to speak."""
        self._ended = True
        self.leave()

    def stepped(self) -> None:
        """The mouth made a step: vocode what has become possible."""
        self.steps += 1
        self._ended = self.mouth.ended or self.frames >= self._model.limits.frames
        if self._ended:
            self.leave()
        self._coming += self._aside.run(lambda: self._vocoder.push(self.mouth.frames, final=self._ended))

    def collect(self) -> list[Chunk]:
        """Speech that is ready; all of it once the talker has ended."""
        pieces: list[Chunk] = []
        while self._coming and (self._ended or self._coming[0].ready):
            pcm = self._coming.pop(0).pcm()
            start, self._samples = self._samples, self._samples + len(pcm) // 2
            final = self._ended and not self._coming
            words = self.words.spoken(self._ms(start), self._ms(self._samples), final=final)
            pieces.append(SpeechChunk(pcm, words))
        self._delivered = self._ended and not self._coming
        return pieces

    def leave(self) -> None:
        self._model.talking.leave(self.mouth)

    def _ms(self, samples: int) -> float:
        return samples * 1000 / self._model.output_rate


def advance(model: OmniModel, answers: Sequence[Answer]) -> None:
    """One step of all these answers together: a token of text where text is due, a frame of speech where speech is."""
    thinking = [answer for answer in answers if not answer.said]
    if thinking:
        cues = model.think([answer.thought for answer in thinking])
        for answer, cue in zip(thinking, cues, strict=True):
            answer.heed(cue[None])
    talking = [(speech, cue) for a in answers if (cue := a.next_cue()) is not None and (speech := a.speech) is not None]
    if talking:
        model.talk([speech.mouth for speech, _ in talking], torch.cat([cue for _, cue in talking]))
        for speech, _ in talking:
            speech.stepped()
    for answer in answers:
        answer.finalize_transcript()
