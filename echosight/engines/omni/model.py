"""What both model families share: hearing, seeing, prefilling and stepping, with every position explicit."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from echosight.engines.omni.batched_kv_cache import Rows, RowStep
from echosight.engines.omni.context import Context, Picture, Segment
from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.mel import StreamingLogMel
from echosight.engines.omni.state import Limits, Mouth, Thought
from echosight.engines.omni.tokens import Tokens
from echosight.engines.omni.vocoder import Vocoder
from echosight.engines.runtime.sampling import (
    BatchSamplingParams,
    Rng,
    SamplingParams,
    apply_repetition_penalty,
    sample,
)
from echosight.media import ImageFrame


class OmniModel(ABC):
    """A loaded model and its processors. Only the thread that owns the model calls it, inside inference mode."""

    window: int
    """Mel frames of an encoder window."""
    zero_tail: bool
    """What the feature extractor sees past the end of the audio (see `StreamingLogMel`)."""
    frame_ms: float
    """Milliseconds of speech in a frame of codes."""
    audio_token: int
    image_token: int
    speakers: tuple[str, ...]
    speech_taste: SamplingParams
    codec_ends: frozenset[int]
    """Codes that end the speech."""
    suppressed: torch.Tensor
    """Codes that are never spoken, (vocabulary) bool."""
    preamble: str = ""
    """What the system prompt has to begin with."""
    codebooks: int = 1
    output_rate = 24_000

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: Recorder
    ) -> None:
        self.model = model
        self.thinker = model.thinker
        self.talks: bool = model.has_talker
        self.talker: Any = model.talker if self.talks else None
        self.tokens = Tokens(tokenizer)
        self.hop: int = extractor.hop_length
        self.device: torch.device = model.thinker.device
        self.dtype: torch.dtype = model.thinker.dtype
        self.limits = limits
        self.recorder = recorder
        # Apart, because what runs on another stream may not share memory with what runs on this one.
        self.vocoder_recorder = recorder.another()
        ends = (self.tokens.end, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.text_ends = frozenset(token for token in ends if token is not None)
        self.text_taste = _taste_of(model)
        self._images = images
        self._n_fft: int = extractor.n_fft
        self._filters = torch.from_numpy(np.asarray(extractor.mel_filters)).float()
        fixed = self.device.type != "cpu"
        layout = model.thinker.config.text_config
        self.thinking = Rows(self.device, self.dtype, layout, rows=limits.answers, length=limits.context, fixed=fixed)
        if self.talks:
            length = limits.context + limits.frames
            layout = self._talker_layout()
            self.talking = Rows(self.device, self.dtype, layout, rows=limits.answers, length=length, fixed=fixed)

    # --- hearing and seeing -----------------------------------------------------------------------

    def new_mel(self) -> StreamingLogMel:
        return StreamingLogMel(
            self._filters, n_fft=self._n_fft, hop=self.hop, window=self.window, zero_tail=self.zero_tail
        )

    def encode_speech(self, frames: torch.Tensor) -> torch.Tensor:
        """Mel frames (n, mels) of at most a window to features (tokens, hidden)."""
        lengths = torch.tensor([len(frames)], device=self.device)
        features = frames.T.to(self.device, self.dtype)
        encoded: torch.Tensor = self.thinker.model.audio_tower(features, feature_lens=lengths).last_hidden_state
        return encoded

    def encode_picture(self, frame: ImageFrame) -> Picture:
        """A still picture to tokens."""
        with Image.open(io.BytesIO(frame.data)) as image:
            pixels = self._images(images=[image.convert("RGB")], return_tensors="pt")
        grid = pixels["image_grid_thw"]
        seen = self.thinker.get_image_features(
            pixels["pixel_values"].to(self.device), grid.to(self.device), return_dict=True
        )
        features = seen.pooler_output
        if isinstance(features, tuple | list):
            features = torch.cat(tuple(features))
        deep = tuple(
            torch.cat(tuple(layer)) if isinstance(layer, tuple | list) else layer
            for layer in getattr(seen, "deepstack_features", None) or ()
        )
        merge = self._images.merge_size
        return Picture(features, deep, int(grid[0, 1]) // merge, int(grid[0, 2]) // merge)

    # --- prefill ----------------------------------------------------------------------------------

    @abstractmethod
    def prefill(self, context: Context, segments: Sequence[Segment]) -> torch.Tensor:
        """Compute segments into both caches. Returns the thinker's last hidden state (1, hidden)."""

    @abstractmethod
    def talker_reads(self, role: str) -> bool:
        """Whether the talker's cache holds what is said in this role."""

    @abstractmethod
    def remember_reply(self, context: Context, cues: torch.Tensor) -> None:
        """Give the talker's cache the reply's text: `cues` (n, width), one a token, from the context's position on."""

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Thinker embeddings (n, hidden)."""
        table: torch.Tensor = self.thinker.get_input_embeddings()(torch.tensor(ids, device=self.device))
        return table

    def gather(self, segments: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Segments as one: embeddings (1, n, hidden), the mask of features among them (n) and positions (3, 1, n)."""
        ids = torch.tensor([token for segment in segments for token in segment.ids])
        fill = torch.tensor([token == segment.placeholder for segment in segments for token in segment.ids])
        embeddings = self.thinker.get_input_embeddings()(ids.to(self.device))
        features = [segment.features for segment in segments if segment.features is not None]
        fill = fill.to(self.device)
        if features:
            embeddings = embeddings.clone()
            embeddings[fill] = torch.cat(features).to(embeddings.dtype)
        places = torch.cat([segment.positions for segment in segments], 1)[:, None].to(self.device)
        return embeddings[None], fill, places

    # --- answering --------------------------------------------------------------------------------

    def first_token(self, hidden: torch.Tensor, dice: Rng, taste: SamplingParams) -> int:
        """What the reply begins with, from the prompt's last hidden state (1, hidden)."""
        chance = torch.tensor(dice.draw(), device=self.device)
        logits = self.thinker.lm_head(hidden)
        return int(sample(logits, chance, BatchSamplingParams.stack([taste], self.device))[0])

    def think(self, thoughts: Sequence[Thought]) -> torch.Tensor:
        """Compute each thought's token and sample its next. Returns the tokens' cues for the talker, (n, width)."""
        step = self.thinking.step(thoughts)
        chosen, cues = self._run_thinker(
            step,
            torch.tensor(step.place([t.token for t in thoughts], 0), device=self.device),
            torch.tensor(step.place([t.position for t in thoughts], 0), device=self.device),
            torch.tensor(step.place([t.dice.draw()[0] for t in thoughts], 0.0), device=self.device),
            BatchSamplingParams.stack(step.place([t.taste for t in thoughts], SamplingParams()), self.device),
        )
        following = chosen.tolist()
        for thought, at in zip(thoughts, step.places, strict=True):
            thought.token = following[at]
            thought.position += 1
        return cues[step.places]

    def talk(self, mouths: Sequence[Mouth], cues: torch.Tensor) -> None:
        """A step of the talker: each mouth is given its cue (n, width) and adds a frame, or ends."""
        step = self.talking.step(mouths)
        owners = step.owners()
        silent = [0.0] * self.codebooks
        chances = step.place([m.dice.draw(self.codebooks) for m in mouths], silent)
        frames, carry, seen = self._run_talker(
            step,
            (torch.stack([m.carry for m in mouths]) + cues)[owners],
            torch.tensor(step.place([m.position for m in mouths], 0), device=self.device),
            torch.stack([m.seen for m in mouths])[owners],
            torch.tensor(chances, device=self.device),
            BatchSamplingParams.stack(step.place([m.taste for m in mouths], SamplingParams()), self.device),
        )
        spoken = frames.tolist()
        for mouth, at in zip(mouths, step.places, strict=True):
            mouth.position += 1
            mouth.carry, mouth.seen = carry[at], seen[at]
            mouth.ended = spoken[at][0] in self.codec_ends
            if not mouth.ended:
                mouth.frames.append(tuple(spoken[at]))

    def record_steps(self) -> None:
        """Record the graphs of all steps, so that nobody's answer waits for one. On a CPU there are none."""
        if not self.thinking.fixed:
            return
        for step in self.thinking.blank_steps():
            nothing, tastes = (
                torch.zeros_like(step.rows),
                BatchSamplingParams.stack([SamplingParams()] * len(step.rows), self.device),
            )
            self._run_thinker(step, nothing, nothing, nothing.float(), tastes)
        for step in self.talking.blank_steps() if self.talks else ():
            nothing, tastes = (
                torch.zeros_like(step.rows),
                BatchSamplingParams.stack([SamplingParams()] * len(step.rows), self.device),
            )
            width, codes = self.talker.get_input_embeddings().weight.shape[::-1]
            heard = torch.zeros(len(step.rows), width, dtype=self.dtype, device=self.device)
            seen = torch.zeros(len(step.rows), codes, dtype=torch.bool, device=self.device)
            chances = torch.zeros(len(step.rows), self.codebooks, device=self.device)
            self._run_talker(step, heard, nothing, seen, chances, tastes)

    def _run_thinker(
        self,
        step: RowStep,
        tokens: torch.Tensor,
        places: torch.Tensor,
        chances: torch.Tensor,
        tastes: BatchSamplingParams,
    ) -> tuple[torch.Tensor, ...]:
        """All of the batch (b): the next tokens and the cues (b, width)."""

        def compute(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rows, starts, token, place, chance, *taste = inputs
            logits, cues = self._think(token, place, step.reading(rows, starts))
            return sample(logits, chance, BatchSamplingParams(*taste)), cues

        inputs = (step.rows, step.starts, tokens, places, chances, *tastes.tensors)
        return self.recorder.run("thinker", step.shape, compute, *inputs)

    def _run_talker(
        self,
        step: RowStep,
        heard: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        chances: torch.Tensor,
        tastes: BatchSamplingParams,
    ) -> tuple[torch.Tensor, ...]:
        """All of the batch (b): frames, carries and codes seen."""

        def compute(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rows, starts, told, place, known, chance, *taste = inputs
            return self._talk(told, place, known, chance, BatchSamplingParams(*taste), step.reading(rows, starts))

        inputs = (step.rows, step.starts, heard, places, seen, chances, *tastes.tensors)
        return self.recorder.run("talker", step.shape, compute, *inputs)

    @abstractmethod
    def open_mouth(self, context: Context, speaker: str, dice: Rng, taste: SamplingParams) -> Mouth:
        """Ready to speak: a row in `talking`, prefilled up to the first cue. The context stays as it is."""

    @abstractmethod
    def cue_end(self) -> torch.Tensor:
        """What the talker is given behind the reply's last token, (1, width)."""

    @abstractmethod
    def cue_pad(self) -> torch.Tensor:
        """What it is given after that, until it ends, (1, width)."""

    @abstractmethod
    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        """A vocoder for one answer."""

    @abstractmethod
    def _talker_layout(self) -> Any:
        """The talker's text config."""

    @abstractmethod
    def _think(self, tokens: torch.Tensor, places: torch.Tensor, step: RowStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and positions (b) to logits (b, vocabulary) and cues (b, width)."""

    @abstractmethod
    def _talk(
        self,
        heard: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        chance: torch.Tensor,
        tastes: BatchSamplingParams,
        step: RowStep,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs (b, width) to frames (b, codebooks), carries (b, width) and the codes seen (b, vocabulary)."""

    def speak_code(
        self,
        logits: torch.Tensor,
        suppressed: torch.Tensor,
        seen: torch.Tensor,
        chance: torch.Tensor,
        tastes: BatchSamplingParams,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose a code a row from the talker's `logits`; returns the codes (b) and `seen` with them in it."""
        logits = apply_repetition_penalty(logits.float(), seen, tastes.repetition_penalty).masked_fill(
            suppressed, -float("inf")
        )
        codes = sample(logits, chance, tastes)
        return codes, seen.scatter(1, codes[:, None], True)


def _taste_of(model: Any) -> SamplingParams:
    """How the checkpoint itself wants its text chosen."""
    wanted = getattr(model.thinker, "generation_config", None)
    if wanted is None or not wanted.do_sample:
        return SamplingParams()
    return SamplingParams(wanted.temperature or 1.0, 1.0 if wanted.top_p is None else wanted.top_p, wanted.top_k or 0)
