"""Qwen3-Omni (Xu et al. 2025): the talker reads the user's messages and the reply's text; many codes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.batched_kv_cache import DecodeStep, ScratchCache
from echosight.engines.omni.models.encoders import Encoders
from echosight.engines.omni.models.kv_caches import KvCaches, trim
from echosight.engines.omni.models.positions import decode_positions, text_positions
from echosight.engines.omni.models.segments import Segment
from echosight.engines.omni.models.state import Limits, TalkerState
from echosight.engines.omni.vocoder import Vocoder
from echosight.engines.omni.vocoder.causal import CausalVocoder
from echosight.engines.runtime.sampling import BatchSamplingParams, Rng, SamplingParams, sample

SPECIAL_CODES = 1024
"""The last ids of the talker's vocabulary are special tokens, which upstream suppresses."""
RESIDUAL_SAMPLING = SamplingParams(temperature=1.0, top_p=0.8, top_k=50)
"""For the codes behind the first of a frame; upstream's code predictor has the same parameters."""


class Qwen3Omni(OmniModel):
    """`Qwen3OmniMoeForConditionalGeneration` of transformers' ``modeling_qwen3_omni_moe.py``.

    The talker's cache holds only the user's tokens, at positions of their own: text as embeddings, speech and images as
    the thinker's hidden states of one layer.
    """

    codec_frame_ms = 80.0
    speech_sampling = SamplingParams(temperature=0.9, top_k=50, repetition_penalty=1.05)

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: GraphRecorder
    ) -> None:
        super().__init__(model, tokenizer, extractor, images, limits, recorder)
        config = model.config.thinker_config
        self.audio_token = config.audio_token_id
        self.image_token = config.image_token_id
        self._config = model.config
        self.speakers = ()
        if self.has_talker:
            talker = model.config.talker_config
            self.speakers = tuple(talker.speaker_id)
            self.codebooks = talker.num_code_groups
            self.codec_stop_tokens = frozenset({talker.codec_eos_token_id})
            vocabulary = talker.text_config.vocab_size
            self.suppressed_codes = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
            self.suppressed_codes[vocabulary - SPECIAL_CODES :] = True
            self.suppressed_codes[talker.codec_eos_token_id] = False

    def talker_reads(self, role: str) -> bool:
        """The user's messages only."""
        return self.has_talker and role == "user"

    def prefill(self, kv: KvCaches, segments: Sequence[Segment]) -> torch.Tensor:
        """See `OmniModel.prefill`."""
        embeddings, is_feature, position_ids = self.concat(segments)
        output = self.thinker.model.language_model(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            past_key_values=kv.thinker,
            use_cache=True,
            output_hidden_states=True,
            **self._deepstack_inputs(segments),
        )
        if any(self.talker_reads(segment.role) for segment in segments):
            layer = output.hidden_states[self._config.talker_config.accept_hidden_layer][0]
            self._prefill_talker(kv, segments, embeddings[0], layer, is_feature)
        last: torch.Tensor = output.last_hidden_state[:, -1]
        return last

    def append_reply(self, kv: KvCaches, talker_inputs: torch.Tensor) -> None:
        """Does nothing: the talker's cache holds no replies."""

    def start_talker(self, kv: KvCaches, speaker: str, rng: Rng, sampling: SamplingParams) -> TalkerState:
        """See `OmniModel.start_talker`. The prompt is upstream's `_get_talker_assistant_parts`: text embeddings of
        the header, four pads and bos; from the fourth on, code embeddings are added.
        """
        config, talker = self._config, self._config.talker_config
        padding = (config.tts_pad_token_id,) * 4
        inputs = self._embed_text([*self.tokens.header("assistant"), *padding, config.tts_bos_token_id])
        no_think = (talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id)
        codes = self._embed_codes([*no_think, talker.speaker_id[speaker], talker.codec_pad_id, talker.codec_bos_id])
        inputs[3:] += codes[:-1]
        start, position = kv.end.talker_tokens, kv.end.talker_position
        self._talker_forward(inputs[None], text_positions(position, len(inputs), self.device), kv.talker)
        seen_codes = torch.zeros_like(self.suppressed_codes)
        state = TalkerState(position + len(inputs), rng, sampling, codes[-1], seen_codes)
        self.talker_batch.add(state, kv.talker, start + len(inputs))
        trim(kv.talker, start)
        return state

    def talker_end_input(self) -> torch.Tensor:
        """See `OmniModel.talker_end_input`."""
        return self._embed_text([self._config.tts_eos_token_id])

    def talker_pad_input(self) -> torch.Tensor:
        """See `OmniModel.talker_pad_input`."""
        return self._embed_text([self._config.tts_pad_token_id])

    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        """See `OmniModel.new_vocoder`. The speech depends on neither argument: the codes already carry the voice."""
        return CausalVocoder(self.model.code2wav, self.vocoder_recorder)

    def _new_encoders(self, extractor: Any, images: Any) -> Encoders:
        window = self.thinker.config.audio_config.n_window_infer
        return Encoders(self.thinker, extractor, images, window=window, zero_tail=False)

    def _talker_config(self) -> Any:
        return self.talker.config.text_config

    def _thinker_step(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: DecodeStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.thinker.get_input_embeddings()(tokens)[:, None]
        hidden = self.thinker.model.language_model(
            inputs_embeds=embeddings,
            position_ids=decode_positions(positions),
            past_key_values=cache,
            attention_mask=cache.mask,
            use_cache=True,
        ).last_hidden_state
        talker_inputs = self.talker.text_projection(embeddings[:, 0]) if self.has_talker else embeddings[:, 0]
        return self.thinker.lm_head(hidden[:, 0]), talker_inputs

    def _talker_step(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        seen_codes: torch.Tensor,
        uniform: torch.Tensor,
        sampling: BatchSamplingParams,
        cache: DecodeStep,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self._talker_forward(inputs[:, None], decode_positions(positions), cache, cache.mask)
        logits = self.talker.codec_head(hidden[:, 0])
        first_codes, seen_codes = self.sample_code(logits, seen_codes, uniform[:, 0], sampling)
        frames, embeddings = self._predict_frame(hidden, first_codes, uniform, sampling)
        return frames, embeddings, seen_codes

    def _predict_frame(
        self, hidden: torch.Tensor, first_codes: torch.Tensor, uniform: torch.Tensor, sampling: BatchSamplingParams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole frames (b, codebooks) by the code predictor, and the sums of their codes' embeddings (b, width).

        `hidden` (b, 1, width) is the talker's; `first_codes` (b,) are those of the first codebook.
        """
        predictor, cache = self.talker.code_predictor, ScratchCache()
        embedding = self.talker.get_input_embeddings()(first_codes)[:, None]
        frame_embeddings, codes = embedding[:, 0], [first_codes]
        residual = _residual_sampling(sampling)
        inputs, length = torch.cat([hidden, embedding], 1), 0
        for codebook in range(1, self.codebooks):
            new = inputs.shape[1]
            length += new
            mask = torch.ones(new, length, dtype=torch.bool, device=self.device).tril(length - new)
            output = predictor.model(
                inputs_embeds=inputs,
                position_ids=torch.arange(length - new, length, device=self.device)[None],
                past_key_values=cache,
                attention_mask=mask[None, None].expand(len(first_codes), -1, -1, -1),
                use_cache=True,
            ).last_hidden_state
            code = sample(predictor.lm_head[codebook - 1](output[:, -1]), uniform[:, codebook], residual)
            codes.append(code)
            inputs = predictor.get_input_embeddings()[codebook - 1](code)[:, None]
            frame_embeddings = frame_embeddings + inputs[:, 0]
        return torch.stack(codes, 1), frame_embeddings

    def _deepstack_inputs(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """The features that images add to the first layers; empty without images."""
        deepstack = [segment.deepstack for segment in segments if segment.deepstack]
        if not deepstack:
            return {}
        is_image = torch.tensor([t == s.placeholder and bool(s.deepstack) for s in segments for t in s.ids])
        layers = [torch.cat(layer) for layer in zip(*deepstack, strict=True)]
        return {"visual_pos_masks": is_image[None].to(self.device), "deepstack_visual_embeds": layers}

    def _prefill_talker(
        self,
        kv: KvCaches,
        segments: Sequence[Segment],
        embeddings: torch.Tensor,
        layer: torch.Tensor,
        is_feature: torch.Tensor,
    ) -> None:
        """The user's tokens into the talker's cache, from the thinker's embeddings and `layer`, both (n, hidden)."""
        read = torch.tensor([self.talker_reads(s.role) for s in segments for _ in s.ids], device=self.device)
        positions = [
            s.positions - int(s.positions.min()) + s.talker_start for s in segments if self.talker_reads(s.role)
        ]
        width = self._talker_config().hidden_size
        inputs = torch.empty(len(embeddings), width, device=self.device, dtype=self.dtype)
        inputs[~is_feature] = self.talker.text_projection(embeddings[~is_feature])
        if bool(is_feature.any()):
            inputs[is_feature] = self.talker.hidden_projection(layer[is_feature])
        self._talker_forward(inputs[read][None], torch.cat(positions, 1)[:, None].to(self.device), kv.talker)

    def _embed_text(self, ids: Sequence[int]) -> torch.Tensor:
        """The talker's inputs for text tokens, (n, width)."""
        inputs: torch.Tensor = self.talker.text_projection(self.embed(ids))
        return inputs

    def _embed_codes(self, codes: Sequence[int]) -> torch.Tensor:
        """(n, width)."""
        embeddings: torch.Tensor = self.talker.get_input_embeddings()(torch.tensor(codes, device=self.device))
        return embeddings

    def _talker_forward(
        self, inputs: torch.Tensor, position_ids: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(b, n, width) in and out; positions (3, b, n)."""
        hidden: torch.Tensor = self.talker.model(
            inputs_embeds=inputs, position_ids=position_ids, past_key_values=cache, attention_mask=mask, use_cache=True
        ).last_hidden_state
        return hidden


def _residual_sampling(sampling: BatchSamplingParams) -> BatchSamplingParams:
    """`RESIDUAL_SAMPLING` for each row, but greedy where the row's first codes are."""
    return BatchSamplingParams(
        (sampling.temperature > 0).to(sampling.temperature) * RESIDUAL_SAMPLING.temperature,
        torch.full_like(sampling.top_p, RESIDUAL_SAMPLING.top_p),
        torch.full_like(sampling.top_k, RESIDUAL_SAMPLING.top_k),
        sampling.repetition_penalty,
    )
