"""Qwen3-Omni: the talker is given the user's turns and the reply's words, and says one frame of many codes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.batched_kv_cache import Brief, RowStep, trim
from echosight.engines.omni.context import Context, Segment
from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.positions import decode_places, prompt_places
from echosight.engines.omni.state import Limits, Mouth
from echosight.engines.omni.vocoder import CausalVocoder, Vocoder
from echosight.engines.runtime.sampling import BatchSamplingParams, Rng, SamplingParams, sample

SUPPRESSED = 1024
"""The last ids of the talker's vocabulary are special tokens, never spoken."""
RESIDUAL_TASTE = SamplingParams(temperature=1.0, top_p=0.8, top_k=50)


class Qwen3Omni(OmniModel):
    """`Qwen3OmniMoeForConditionalGeneration`. The talker's cache holds the user's tokens only, at positions of its own:
    text as embeddings, speech and pictures as the thinker's hidden states of one layer.
    """

    zero_tail = False
    frame_ms = 80.0
    speech_taste = SamplingParams(temperature=0.9, top_k=50, repetition_penalty=1.05)

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: Recorder
    ) -> None:
        super().__init__(model, tokenizer, extractor, images, limits, recorder)
        config = model.config.thinker_config
        self.window = config.audio_config.n_window_infer
        self.audio_token = config.audio_token_id
        self.image_token = config.image_token_id
        self._config = model.config
        self.speakers = ()
        if self.talks:
            talker = model.config.talker_config
            self.speakers = tuple(talker.speaker_id)
            self.codebooks = talker.num_code_groups
            self.codec_ends = frozenset({talker.codec_eos_token_id})
            vocabulary = talker.text_config.vocab_size
            self.suppressed = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
            self.suppressed[vocabulary - SUPPRESSED :] = True
            self.suppressed[talker.codec_eos_token_id] = False

    def talker_reads(self, role: str) -> bool:
        return self.talks and role == "user"

    def prefill(self, context: Context, segments: Sequence[Segment]) -> torch.Tensor:
        embeddings, fill, places = self.gather(segments)
        deep = [segment.deep for segment in segments if segment.deep]
        pictured = torch.tensor([t == s.placeholder and bool(s.deep) for s in segments for t in s.ids])
        seen: dict[str, Any] = {}
        if deep:
            layers = [torch.cat(layer) for layer in zip(*deep, strict=True)]
            seen = {"visual_pos_masks": pictured[None].to(self.device), "deepstack_visual_embeds": layers}
        out = self.thinker.model.language_model(
            inputs_embeds=embeddings,
            position_ids=places,
            past_key_values=context.thinker,
            use_cache=True,
            output_hidden_states=True,
            **seen,
        )
        if any(self.talker_reads(segment.role) for segment in segments):
            accepted = out.hidden_states[self._config.talker_config.accept_hidden_layer][0]
            self._prefill_talker(context, segments, embeddings[0], accepted, fill)
        last: torch.Tensor = out.last_hidden_state[:, -1]
        return last

    def remember_reply(self, context: Context, cues: torch.Tensor) -> None:
        """The talker is never told what it said before."""

    def open_mouth(self, context: Context, speaker: str, dice: Rng, taste: SamplingParams) -> Mouth:
        config, talker = self._config, self._config.talker_config
        padding = (config.tts_pad_token_id,) * 4
        written = self._read([*self.tokens.header("assistant"), *padding, config.tts_bos_token_id])
        told = (talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id)
        codes = self._codec_embeddings([*told, talker.speaker_id[speaker], talker.codec_pad_id, talker.codec_bos_id])
        written[3:] += codes[:-1]
        start, position = context.at.talker, context.at.talker_position
        self._talker_forward(written[None], prompt_places(position, len(written), self.device), context.talker)
        mouth = Mouth(position + len(written), dice, taste, codes[-1], torch.zeros_like(self.suppressed))
        self.talking.join(mouth, context.talker, start + len(written))
        trim(context.talker, start)
        return mouth

    def cue_end(self) -> torch.Tensor:
        return self._read([self._config.tts_eos_token_id])

    def cue_pad(self) -> torch.Tensor:
        return self._read([self._config.tts_pad_token_id])

    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        return CausalVocoder(self.model.code2wav, self.vocoder_recorder)

    def _talker_layout(self) -> Any:
        return self.talker.config.text_config

    def _think(self, tokens: torch.Tensor, places: torch.Tensor, step: RowStep) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.thinker.get_input_embeddings()(tokens)[:, None]
        hidden = self.thinker.model.language_model(
            inputs_embeds=embeddings,
            position_ids=decode_places(places),
            past_key_values=step,
            attention_mask=step.mask,
            use_cache=True,
        ).last_hidden_state
        cues = self.talker.text_projection(embeddings[:, 0]) if self.talks else embeddings[:, 0]
        return self.thinker.lm_head(hidden[:, 0]), cues

    def _talk(
        self,
        heard: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        chance: torch.Tensor,
        tastes: BatchSamplingParams,
        step: RowStep,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self._talker_forward(heard[:, None], decode_places(places), step, step.mask)
        logits = self.talker.codec_head(hidden[:, 0])
        first, seen = self.speak_code(logits, self.suppressed, seen, chance[:, 0], tastes)
        codes, carry = self._fill_frame(hidden, first, chance, tastes)
        return codes, carry, seen

    def _fill_frame(
        self, hidden: torch.Tensor, first: torch.Tensor, chance: torch.Tensor, tastes: BatchSamplingParams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole frame (b, codebooks) by the code predictor, and the sum of its codes' embeddings (b, width)."""
        predictor, cache = self.talker.code_predictor, Brief()
        embedding = self.talker.get_input_embeddings()(first)[:, None]
        carry, codes = embedding[:, 0], [first]
        batch = len(first)
        residual = BatchSamplingParams(
            (tastes.temperature > 0).to(tastes.temperature) * RESIDUAL_TASTE.temperature,
            torch.full_like(tastes.top_p, RESIDUAL_TASTE.top_p),
            torch.full_like(tastes.top_k, RESIDUAL_TASTE.top_k),
            tastes.repetition_penalty,
        )
        heard, length = torch.cat([hidden, embedding], 1), 0
        for group in range(1, self.codebooks):
            new = heard.shape[1]
            length += new
            mask = torch.ones(new, length, dtype=torch.bool, device=self.device).tril(length - new)
            said = predictor.model(
                inputs_embeds=heard,
                position_ids=torch.arange(length - new, length, device=self.device)[None],
                past_key_values=cache,
                attention_mask=mask[None, None].expand(batch, -1, -1, -1),
                use_cache=True,
            ).last_hidden_state
            code = sample(predictor.lm_head[group - 1](said[:, -1]), chance[:, group], residual)
            codes.append(code)
            heard = predictor.get_input_embeddings()[group - 1](code)[:, None]
            carry = carry + heard[:, 0]
        return torch.stack(codes, 1), carry

    def _prefill_talker(
        self,
        context: Context,
        segments: Sequence[Segment],
        embeddings: torch.Tensor,
        accepted: torch.Tensor,
        fill: torch.Tensor,
    ) -> None:
        read = torch.tensor([self.talker_reads(s.role) for s in segments for _ in s.ids], device=self.device)
        places = [s.positions - int(s.positions.min()) + s.talker_start for s in segments if self.talker_reads(s.role)]
        heard = torch.empty(len(embeddings), self._talker_layout().hidden_size, device=self.device, dtype=self.dtype)
        heard[~fill] = self.talker.text_projection(embeddings[~fill])
        if bool(fill.any()):
            heard[fill] = self.talker.hidden_projection(accepted[fill])
        self._talker_forward(heard[read][None], torch.cat(places, 1)[:, None].to(self.device), context.talker)

    def _read(self, ids: Sequence[int]) -> torch.Tensor:
        """Words as the talker reads them, (n, width)."""
        words: torch.Tensor = self.talker.text_projection(self.embed(ids))
        return words

    def _codec_embeddings(self, codes: Sequence[int]) -> torch.Tensor:
        table: torch.Tensor = self.talker.get_input_embeddings()(torch.tensor(codes, device=self.device))
        return table

    def _talker_forward(
        self, heard: torch.Tensor, places: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.talker.model(
            inputs_embeds=heard, position_ids=places, past_key_values=cache, attention_mask=mask, use_cache=True
        ).last_hidden_state
        return hidden
