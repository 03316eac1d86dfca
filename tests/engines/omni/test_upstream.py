"""Greedy answers are token by token those of transformers' own generation, and their sound that of its vocoders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from echosight.conversation import TextPart
from echosight.engines.omni.dit import Speaker, WindowedVocoder, diffuse, synthesise
from echosight.engines.omni.graphs import Recorder
from echosight.engines.omni.model_runner import Stage
from echosight.engines.omni.vocoder import CausalVocoder
from tests.engines.omni.speech import SYSTEM, Said, ask, heard, sound, user, view, wish

SPEECH = sound(2.7, 5)
TURN = user("one", heard(SPEECH), TextPart("look"))
TOKENS = 24
FRAMES = 48


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompt_of(model: Any, folder: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The conversation's prompt for upstream: token ids and the extractor's features."""
    reader: Any = AutoFeatureExtractor
    mel = reader.from_pretrained(folder)(
        (np.frombuffer(SPEECH, "<i2") / 32768).astype("f4"),
        sampling_rate=16000,
        padding="max_length" if model.zero_tail else True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    frames = int(mel["attention_mask"].sum())
    tokens = model.tokens
    with torch.inference_mode():
        count = len(model.encode_speech(mel["input_features"][0, :, :frames].T))
    ids = [*tokens.header("system"), *tokens.encode(SYSTEM), *tokens.footer, *tokens.header("user")]
    ids += [tokens.audio_start, *[model.audio_token] * count, tokens.audio_end, *tokens.encode("look")]
    prompt = torch.tensor([[*ids, *tokens.footer, *tokens.header("assistant")]])
    return prompt, {"input_features": mel["input_features"], "feature_attention_mask": mel["attention_mask"]}


@pytest.fixture
def answer(stage: Stage, model: Any) -> Said:
    return ask(stage, view(TURN), wish(model, TOKENS))


def codes_of_qwen2_5(model: Any, prompt: torch.Tensor, features: dict[str, Any], reply: list[int], n: int) -> list[int]:
    """Upstream's talker fed with the whole reply. `generate` itself drops an all-ones mask, and with it the talker's
    own start tokens and positions; so its steps are made here, with the mask.
    """
    thinker, talker = model.thinker, model.talker
    whole = torch.cat([prompt, torch.tensor([reply])], 1)
    out = thinker(input_ids=whole, attention_mask=torch.ones_like(whole), output_hidden_states=True, **features)
    embeddings = out.hidden_states[0].clone()
    embeddings[whole == model.audio_token] = 0
    told = embeddings + out.hidden_states[-1]
    length = prompt.shape[1]
    voice = model.model.speaker_map[model.speakers[0]]["bos_token"]
    rest = torch.cat([told[:, length + 1 :], model.cue_end()[None], model.cue_pad()[None]], 1)
    text = torch.cat([prompt, torch.tensor([[voice, reply[0]]])], 1)
    mask = torch.ones_like(text)
    talker.rope_deltas = None
    out = talker(
        input_ids=torch.full_like(text, talker.codec_mask_token),
        input_text_ids=text,
        thinker_reply_part=rest,
        inputs_embeds=torch.cat([told[:, :length], model.embed([voice])[None], told[:, length : length + 1]], 1),
        attention_mask=mask,
        use_cache=True,
        audio_feature_lengths=features["feature_attention_mask"].sum(1),
    )
    codes: list[int] = []
    while len(codes) < n:
        logits = out.logits[:, -1].clone()
        logits[:, talker.codec_bos_token] = -torch.inf
        codes.append(int(logits.argmax()))
        mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
        out = talker(
            input_ids=torch.tensor([codes[-1:]]),
            attention_mask=mask,
            past_key_values=out.past_key_values,
            thinker_reply_part=out.thinker_reply_part,
            use_cache=True,
        )
    return codes


@pytest.mark.parametrize("kind", ["qwen2_5_omni"], indirect=True, scope="session")
def test_qwen2_5_says_what_upstream_says(model: Any, folders: Any, kind: str, answer: Said) -> None:
    prompt, features = prompt_of(model, folders[kind])
    text = model.thinker.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        **features,
    )
    assert answer.tokens == text[0, prompt.shape[1] :].tolist()
    codes = [code for (code,) in answer.frames]
    assert len(codes) == FRAMES
    assert codes == codes_of_qwen2_5(model, prompt, features, answer.tokens, FRAMES)


@pytest.mark.parametrize("kind", ["qwen3_omni_moe"], indirect=True, scope="session")
def test_qwen3_says_what_upstream_says(model: Any, folders: Any, kind: str, answer: Said) -> None:
    prompt, features = prompt_of(model, folders[kind])
    # Upstream's talker reads a setting that its configuration lacks.
    model.talker.config.audio_config = model.thinker.config.audio_config
    spoken: list[torch.Tensor] = []
    decode = model.model.code2wav.chunked_decode

    def listen(codes: torch.Tensor, **sizes: int) -> torch.Tensor:
        spoken.append(codes)
        wave: torch.Tensor = decode(codes, **sizes)
        return wave

    model.model.code2wav.chunked_decode = listen
    try:
        text, _ = model.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            speaker=model.speakers[0],
            thinker_max_new_tokens=TOKENS + 1,
            thinker_do_sample=False,
            thinker_eos_token_id=None,
            talker_do_sample=False,
            talker_repetition_penalty=1.0,
            talker_max_new_tokens=FRAMES,
            **features,
        )
    finally:
        model.model.code2wav.chunked_decode = decode
    assert answer.tokens == text[0, prompt.shape[1] : prompt.shape[1] + TOKENS].tolist()
    frames = [tuple(frame) for frame in spoken[0][0].T.tolist()]
    assert len(frames) > 20
    assert answer.frames[: len(frames)] == frames


def noise_ratio(sound: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal to noise in dB."""
    error = float(((sound - reference) ** 2).sum())
    return 10 * math.log10(float((reference**2).sum()) / max(error, 1e-30))


@pytest.mark.parametrize("kind", ["qwen2_5_omni"], indirect=True, scope="session")
def test_qwen2_5_sounds_as_in_one_piece(model: Any, kind: str) -> None:
    token2wav, voice = model.model.token2wav, model.model.speaker_map["Chelsie"]
    codes = np.random.default_rng(0).integers(0, 80, 150).tolist()
    torch.manual_seed(3)
    upstream = token2wav(torch.tensor([codes]), conditioning=voice["cond"], reference_mel=voice["ref_mel"]).reshape(-1)
    dit = token2wav.code2wav_dit_model
    speaker = Speaker(dit, voice["cond"], voice["ref_mel"])
    torch.manual_seed(3)
    mel = diffuse(dit, torch.tensor([codes]), torch.randn(1, 300, 80), speaker.vector, speaker.reference)
    assert noise_ratio(synthesise(token2wav.code2wav_bigvgan_model, mel.permute(0, 2, 1)), upstream) > 90
    vocoder = WindowedVocoder(token2wav, speaker, Recorder("cpu"), seed=3)
    pieces = [
        piece
        for end in range(1, len(codes) + 1)
        for piece in vocoder.push([(code,) for code in codes[:end]], final=end == len(codes))
    ]
    assert len(pieces) > 4
    assert noise_ratio(torch.cat(pieces), upstream) > 50


@pytest.mark.parametrize("kind", ["qwen3_omni_moe"], indirect=True, scope="session")
def test_qwen3_sounds_as_in_one_piece(model: Any, kind: str) -> None:
    code2wav = model.model.code2wav
    frames = [tuple(row) for row in np.random.default_rng(0).integers(0, 64, (110, 4)).tolist()]
    upstream = code2wav(torch.tensor(frames).T[None])[0, 0]
    # Random weights look back as far as attention reaches; trained ones are decoded with 25 frames upstream too.
    vocoder = CausalVocoder(code2wav, Recorder("cpu"), context=200)
    pieces = [
        piece for end in range(1, len(frames) + 1) for piece in vocoder.push(frames[:end], final=end == len(frames))
    ]
    assert len(pieces) > 4
    assert noise_ratio(torch.cat(pieces), upstream) > 90
