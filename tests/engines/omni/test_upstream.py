"""Greedy replies equal those of transformers' own generation token by token, and their audio that of its vocoders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from echosight.conversation import TextPart, pcm_part
from echosight.engines.omni.graphs import GraphRecorder
from echosight.engines.omni.model_runner import ModelRunner
from echosight.engines.omni.vocoder.bigvgan import synthesize
from echosight.engines.omni.vocoder.causal import CausalVocoder
from echosight.engines.omni.vocoder.dit import VoiceConditioning, diffuse
from echosight.engines.omni.vocoder.windowed import WindowedVocoder
from tests.engines.omni.speech import SYSTEM, Reply, extract_features, reply_to, snapshot, sound, spoken_request, user

SPEECH = sound(2.7, 5)
TURN = user("one", pcm_part(SPEECH), TextPart("look"))
TOKENS = 24
FRAMES = 48


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompt_of(model: Any, folder: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The conversation's prompt for upstream: token ids (1, n) and the feature extractor's output."""
    reader: Any = AutoFeatureExtractor
    mel = extract_features(reader.from_pretrained(folder), SPEECH, zero_tail=model.encoders.zero_tail)
    frames = int(mel["attention_mask"].sum())
    tokens = model.tokens
    with torch.inference_mode():
        count = len(model.encoders.encode_speech(mel["input_features"][0, :, :frames].T))
    ids = [*tokens.header("system"), *tokens.encode(SYSTEM), *tokens.footer, *tokens.header("user")]
    ids += [tokens.audio_start, *[model.audio_token] * count, tokens.audio_end, *tokens.encode("look")]
    prompt = torch.tensor([[*ids, *tokens.footer, *tokens.header("assistant")]])
    return prompt, {"input_features": mel["input_features"], "feature_attention_mask": mel["attention_mask"]}


@pytest.fixture
def reply(runner: ModelRunner, model: Any) -> Reply:
    return reply_to(runner, snapshot(TURN), spoken_request(model, TOKENS))


def talker_inputs(model: Any, ids: torch.Tensor, features: dict[str, Any]) -> torch.Tensor:
    """Upstream's rule for Qwen2.5: embedding plus hidden state (1, n, hidden); for speech the hidden state alone."""
    out = model.thinker(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **features)
    embeddings = out.hidden_states[0].clone()
    embeddings[ids == model.audio_token] = 0
    inputs: torch.Tensor = embeddings + out.hidden_states[-1]
    return inputs


def codes_of_qwen2_5(
    model: Any, prompt: torch.Tensor, features: dict[str, Any], tokens: list[int], n: int
) -> list[int]:
    """The first `n` codes of upstream's talker for the whole reply.

    `generate` drops a mask of ones, and with it the talker's own start tokens and positions; so this loop calls the
    talker with the mask.
    """
    talker = model.talker
    inputs = talker_inputs(model, torch.cat([prompt, torch.tensor([tokens])], 1), features)
    length = prompt.shape[1]
    voice = model.model.speaker_map[model.speakers[0]]["bos_token"]
    rest = torch.cat([inputs[:, length + 1 :], model.talker_end_input()[None], model.talker_pad_input()[None]], 1)
    text = torch.cat([prompt, torch.tensor([[voice, tokens[0]]])], 1)
    mask = torch.ones_like(text)
    talker.rope_deltas = None
    out = talker(
        input_ids=torch.full_like(text, talker.codec_mask_token),
        input_text_ids=text,
        thinker_reply_part=rest,
        inputs_embeds=torch.cat([inputs[:, :length], model.embed([voice])[None], inputs[:, length : length + 1]], 1),
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


@pytest.mark.parametrize("model_type", ["qwen2_5_omni"], indirect=True, scope="session")
def test_qwen2_5_replies_equal_upstreams(model: Any, folders: Any, model_type: str, reply: Reply) -> None:
    prompt, features = prompt_of(model, folders[model_type])
    text = model.thinker.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        **features,
    )
    assert reply.tokens == text[0, prompt.shape[1] :].tolist()
    codes = [code for (code,) in reply.frames]
    assert len(codes) == FRAMES
    assert codes == codes_of_qwen2_5(model, prompt, features, reply.tokens, FRAMES)


@pytest.mark.parametrize("model_type", ["qwen3_omni_moe"], indirect=True, scope="session")
def test_qwen3_replies_equal_upstreams(model: Any, folders: Any, model_type: str, reply: Reply) -> None:
    prompt, features = prompt_of(model, folders[model_type])
    # Upstream's talker reads a field that its configuration lacks.
    model.talker.config.audio_config = model.thinker.config.audio_config
    assistant: list[torch.Tensor] = []
    decode = model.model.code2wav.chunked_decode

    def listen(codes: torch.Tensor, **sizes: int) -> torch.Tensor:
        assistant.append(codes)
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
    assert reply.tokens == text[0, prompt.shape[1] : prompt.shape[1] + TOKENS].tolist()
    frames = [tuple(frame) for frame in assistant[0][0].T.tolist()]
    assert len(frames) > 20
    assert reply.frames[: len(frames)] == frames


def noise_ratio(sound: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal to noise in dB."""
    error = float(((sound - reference) ** 2).sum())
    return 10 * math.log10(float((reference**2).sum()) / max(error, 1e-30))


@pytest.mark.parametrize("model_type", ["qwen2_5_omni"], indirect=True, scope="session")
def test_qwen2_5_windows_sound_like_one_pass(model: Any, model_type: str) -> None:
    token2wav, entry = model.model.token2wav, model.model.speaker_map["Chelsie"]
    codes = np.random.default_rng(0).integers(0, 80, 150).tolist()
    torch.manual_seed(3)
    upstream = token2wav(torch.tensor([codes]), conditioning=entry["cond"], reference_mel=entry["ref_mel"]).reshape(-1)
    dit = token2wav.code2wav_dit_model
    voice = VoiceConditioning(dit, entry["cond"], entry["ref_mel"])
    torch.manual_seed(3)
    mel = diffuse(dit, torch.tensor([codes]), torch.randn(1, 300, 80), voice.speaker, voice.reference)
    assert noise_ratio(synthesize(token2wav.code2wav_bigvgan_model, mel.permute(0, 2, 1)), upstream) > 90
    vocoder = WindowedVocoder(token2wav, voice, GraphRecorder("cpu"), seed=3)
    chunks = [
        chunk
        for end in range(1, len(codes) + 1)
        for chunk in vocoder.push([(code,) for code in codes[:end]], final=end == len(codes))
    ]
    assert len(chunks) > 4
    assert noise_ratio(torch.cat(chunks), upstream) > 50


@pytest.mark.parametrize("model_type", ["qwen3_omni_moe"], indirect=True, scope="session")
def test_qwen3_windows_sound_like_one_pass(model: Any, model_type: str) -> None:
    code2wav = model.model.code2wav
    frames = [tuple(row) for row in np.random.default_rng(0).integers(0, 64, (110, 4)).tolist()]
    upstream = code2wav(torch.tensor(frames).T[None])[0, 0]
    # With random weights, attention reaches back without limit; upstream decodes trained ones with 25 frames, too.
    vocoder = CausalVocoder(code2wav, GraphRecorder("cpu"), context=200)
    chunks = [
        chunk for end in range(1, len(frames) + 1) for chunk in vocoder.push(frames[:end], final=end == len(frames))
    ]
    assert len(chunks) > 4
    assert noise_ratio(torch.cat(chunks), upstream) > 90
