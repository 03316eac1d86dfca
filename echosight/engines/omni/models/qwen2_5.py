"""Qwen2.5-Omni (Xu et al. 2025): the talker reads the thinker's hidden states; one code a step, 50 steps a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.batched_kv_cache import DecodeStep
from echosight.engines.omni.models.encoders import Encoders
from echosight.engines.omni.models.kv_caches import KvCaches, trim
from echosight.engines.omni.models.positions import decode_positions, text_positions
from echosight.engines.omni.models.segments import Segment
from echosight.engines.omni.models.state import Limits, TalkerState
from echosight.engines.omni.vocoder import Vocoder
from echosight.engines.omni.vocoder.dit import VoiceConditioning
from echosight.engines.omni.vocoder.windowed import WindowedVocoder
from echosight.engines.runtime.sampling import BatchSamplingParams, Rng, SamplingParams


class Qwen2_5Omni(OmniModel):
    """`Qwen2_5OmniForConditionalGeneration` of transformers' ``modeling_qwen2_5_omni.py``.

    Both caches hold the same tokens at the same positions.
    """

    codec_frame_ms = 20.0
    speech_sampling = SamplingParams(temperature=0.9, top_p=0.8, top_k=40, repetition_penalty=1.05)
    # The model card requires these words for speech.
    preamble = (
        "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory "
        "and visual inputs, as well as generating text and speech."
    )

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: GraphRecorder
    ) -> None:
        super().__init__(model, tokenizer, extractor, images, limits, recorder)
        config = model.config.thinker_config
        self.audio_token = config.audio_token_index
        self.image_token = config.image_token_index
        self.speakers = tuple(model.speaker_map) if self.has_talker else ()
        if self.has_talker:
            talker = self.talker
            self.codec_stop_tokens = frozenset({talker.codec_eos_token, talker.codec_pad_token})
            suppressed = torch.zeros(talker.codebook_size, dtype=torch.bool, device=self.device)
            suppressed[talker.codec_bos_token] = True
            # Codes that the vocoder has no embedding for.
            suppressed[model.config.token2wav_config.dit_config.num_embeds :] = True
            suppressed[list(self.codec_stop_tokens)] = False
            self.suppressed_codes = suppressed
            # Upstream runs the vocoder in full precision, too.
            model.token2wav.float()
            self._voices: dict[str, VoiceConditioning] = {}

    def prefill(self, kv: KvCaches, segments: Sequence[Segment]) -> torch.Tensor:
        """See `OmniModel.prefill`."""
        embeddings, is_feature, position_ids = self.concat(segments)
        hidden = self._thinker_forward(embeddings, position_ids, kv.thinker)
        if self.has_talker:
            # Upstream's rule: embedding plus hidden state; for speech and images the hidden state alone.
            inputs = hidden + embeddings.masked_fill(is_feature[None, :, None], 0)
            self._talker_forward(inputs, position_ids, kv.talker)
        return hidden[:, -1]

    def talker_reads(self, role: str) -> bool:
        """Every role."""
        return self.has_talker

    def append_reply(self, kv: KvCaches, talker_inputs: torch.Tensor) -> None:
        """See `OmniModel.append_reply`."""
        if self.has_talker and len(talker_inputs):
            position_ids = text_positions(kv.end.thinker_position, len(talker_inputs), self.device)
            self._talker_forward(talker_inputs[None], position_ids, kv.talker)

    def start_talker(self, kv: KvCaches, speaker: str, rng: Rng, sampling: SamplingParams) -> TalkerState:
        """See `OmniModel.start_talker`. The prompt ends with the voice's token and the codec's pad and bos."""
        talker, start = self.talker, kv.end.talker_tokens
        codes = self._embed_codes([talker.codec_pad_token, talker.codec_bos_token])
        voice = self.embed([self.model.speaker_map[speaker]["bos_token"]])
        position = kv.end.thinker_position
        self._talker_forward((voice + codes[:1])[None], text_positions(position, 1, self.device), kv.talker)
        seen_codes = torch.zeros_like(self.suppressed_codes)
        seen_codes[[talker.codec_mask_token, talker.codec_pad_token, talker.codec_bos_token]] = True
        state = TalkerState(position + 1, rng, sampling, codes[1], seen_codes)
        self.talker_batch.add(state, kv.talker, start + 1)
        trim(kv.talker, start)
        return state

    def talker_end_input(self) -> torch.Tensor:
        """See `OmniModel.talker_end_input`."""
        return self.embed([self.talker.text_eos_token])

    def talker_pad_input(self) -> torch.Tensor:
        """See `OmniModel.talker_pad_input`."""
        return self.embed([self.talker.text_pad_token])

    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        """See `OmniModel.new_vocoder`; `seed` is that of the diffusion noise."""
        if speaker not in self._voices:
            entry = self.model.speaker_map[speaker]
            dit = self.model.token2wav.code2wav_dit_model
            self._voices[speaker] = VoiceConditioning(dit, entry["cond"], entry["ref_mel"])
        return WindowedVocoder(self.model.token2wav, self._voices[speaker], self.vocoder_recorder, seed=seed)

    def _new_encoders(self, extractor: Any, images: Any) -> Encoders:
        window = self.thinker.config.audio_config.n_window * 2
        return Encoders(self.thinker, extractor, images, window=window, zero_tail=True)

    def _talker_config(self) -> Any:
        return self.talker.config

    def _thinker_step(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: DecodeStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.thinker.get_input_embeddings()(tokens)[:, None]
        hidden = self._thinker_forward(embeddings, decode_positions(positions), cache, cache.mask)
        return self.thinker.lm_head(hidden[:, 0]), (hidden + embeddings)[:, 0]

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
        codes, seen_codes = self.sample_code(logits, seen_codes, uniform[:, 0], sampling)
        return codes[:, None], self.talker.get_input_embeddings()(codes), seen_codes

    def _embed_codes(self, codes: Sequence[int]) -> torch.Tensor:
        embeddings: torch.Tensor = self.talker.get_input_embeddings()(torch.tensor(codes, device=self.device))
        return embeddings

    def _thinker_forward(
        self, embeddings: torch.Tensor, position_ids: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(b, n, hidden) in and out; positions (3, b, n)."""
        hidden: torch.Tensor = self.thinker.model.language_model(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _talker_forward(
        self, inputs: torch.Tensor, position_ids: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(b, n, hidden) to (b, n, talker's hidden); positions (3, b, n)."""
        hidden: torch.Tensor = self.talker.model(
            inputs_embeds=self.talker.thinker_to_talker_proj(inputs),
            position_ids=position_ids,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
        ).last_hidden_state
        return hidden
