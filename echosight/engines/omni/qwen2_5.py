"""Qwen2.5-Omni: the talker reads along with the thinker's hidden states, one code a step, 50 steps a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from echosight.engines.omni.batched_kv_cache import RowStep, trim
from echosight.engines.omni.context import Context, Segment
from echosight.engines.omni.dit import Speaker, WindowedVocoder
from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.positions import decode_places, prompt_places
from echosight.engines.omni.state import Limits, Mouth
from echosight.engines.omni.vocoder import Vocoder
from echosight.engines.runtime.sampling import BatchSamplingParams, Rng, SamplingParams


class Qwen2_5Omni(OmniModel):
    """`Qwen2_5OmniForConditionalGeneration`. Both caches hold the same tokens at the same positions."""

    zero_tail = True
    frame_ms = 20.0
    speech_taste = SamplingParams(temperature=0.9, top_p=0.8, top_k=40, repetition_penalty=1.05)
    # Without these words the model was not trained to speak (its model card).
    preamble = (
        "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory "
        "and visual inputs, as well as generating text and speech."
    )

    def __init__(
        self, model: Any, tokenizer: Any, extractor: Any, images: Any, limits: Limits, recorder: Recorder
    ) -> None:
        super().__init__(model, tokenizer, extractor, images, limits, recorder)
        config = model.config.thinker_config
        self.window = config.audio_config.n_window * 2
        self.audio_token = config.audio_token_index
        self.image_token = config.image_token_index
        self.speakers = tuple(model.speaker_map) if self.talks else ()
        if self.talks:
            talker = self.talker
            self.codec_ends = frozenset({talker.codec_eos_token, talker.codec_pad_token})
            self.suppressed = torch.zeros(talker.codebook_size, dtype=torch.bool, device=self.device)
            self.suppressed[talker.codec_bos_token] = True
            # Codes that the vocoder does not know.
            self.suppressed[model.config.token2wav_config.dit_config.num_embeds :] = True
            self.suppressed[list(self.codec_ends)] = False
            # Upstream computes it in full precision too.
            model.token2wav.float()
            self._voices: dict[str, Speaker] = {}

    def prefill(self, context: Context, segments: Sequence[Segment]) -> torch.Tensor:
        embeddings, fill, places = self.gather(segments)
        hidden = self._thinker_forward(embeddings, places, context.thinker)
        if self.talks:
            # Upstream's rule: a token's embedding and its hidden state, of speech and pictures the hidden state alone.
            heard = hidden + embeddings.masked_fill(fill[None, :, None], 0)
            self._talker_forward(heard, places, context.talker)
        return hidden[:, -1]

    def talker_reads(self, role: str) -> bool:
        return self.talks

    def remember_reply(self, context: Context, cues: torch.Tensor) -> None:
        if self.talks and len(cues):
            places = prompt_places(context.at.position, len(cues), self.device)
            self._talker_forward(cues[None], places, context.talker)

    def open_mouth(self, context: Context, speaker: str, dice: Rng, taste: SamplingParams) -> Mouth:
        talker, start = self.talker, context.at.talker
        codes = self._codec_embeddings([talker.codec_pad_token, talker.codec_bos_token])
        voice = self.embed([self.model.speaker_map[speaker]["bos_token"]])
        position = context.at.position
        self._talker_forward((voice + codes[:1])[None], prompt_places(position, 1, self.device), context.talker)
        seen = torch.zeros_like(self.suppressed)
        seen[[talker.codec_mask_token, talker.codec_pad_token, talker.codec_bos_token]] = True
        mouth = Mouth(position + 1, dice, taste, codes[1], seen)
        self.talking.join(mouth, context.talker, start + 1)
        trim(context.talker, start)
        return mouth

    def cue_end(self) -> torch.Tensor:
        return self.embed([self.talker.text_eos_token])

    def cue_pad(self) -> torch.Tensor:
        return self.embed([self.talker.text_pad_token])

    def new_vocoder(self, speaker: str, seed: int | None) -> Vocoder:
        if speaker not in self._voices:
            voice = self.model.speaker_map[speaker]
            dit = self.model.token2wav.code2wav_dit_model
            self._voices[speaker] = Speaker(dit, voice["cond"], voice["ref_mel"])
        return WindowedVocoder(self.model.token2wav, self._voices[speaker], self.vocoder_recorder, seed=seed)

    def _talker_layout(self) -> Any:
        return self.talker.config

    def _think(self, tokens: torch.Tensor, places: torch.Tensor, step: RowStep) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.thinker.get_input_embeddings()(tokens)[:, None]
        hidden = self._thinker_forward(embeddings, decode_places(places), step, step.mask)
        return self.thinker.lm_head(hidden[:, 0]), (hidden + embeddings)[:, 0]

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
        codes, seen = self.speak_code(logits, self.suppressed, seen, chance[:, 0], tastes)
        return codes[:, None], self.talker.get_input_embeddings()(codes), seen

    def _codec_embeddings(self, codes: Sequence[int]) -> torch.Tensor:
        table: torch.Tensor = self.talker.get_input_embeddings()(torch.tensor(codes, device=self.device))
        return table

    def _thinker_forward(
        self, embeddings: torch.Tensor, places: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.thinker.model.language_model(
            inputs_embeds=embeddings, position_ids=places, past_key_values=cache, attention_mask=mask, use_cache=True
        ).last_hidden_state
        return hidden

    def _talker_forward(
        self, heard: torch.Tensor, places: torch.Tensor, cache: Any, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.talker.model(
            inputs_embeds=self.talker.thinker_to_talker_proj(heard),
            position_ids=places,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
        ).last_hidden_state
        return hidden
