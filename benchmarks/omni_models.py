"""Omni models of true size with random weights: no download, and replies without meaning."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    WhisperFeatureExtractor,
)

from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.families import build_model
from echosight.engines.omni.models.state import Limits
from tests.engines.omni import tiny
from tests.engines.omni.tiny_configs import qwen2_5_config, qwen3_config

SIZES = ("tiny", "3b", "7b", "30b-a3b")
SPREAD = 0.02
"""Standard deviation of the weights."""
STD = {"initializer_range": SPREAD}


def build(size: str, device: str, limits: Limits, *, graphs: bool) -> OmniModel:
    """A model of that size on the device, in bfloat16; tiny on a CPU in float32. It has no stop tokens."""
    tokenizer = tiny.tokenizer()
    model_type = "qwen3_omni_moe" if size == "30b-a3b" else "qwen2_5_omni"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if (size, device) == ("tiny", "cpu") else torch.bfloat16)
    try:
        with torch.device(device):
            raw = _qwen3(tokenizer) if model_type == "qwen3_omni_moe" else _qwen2_5(size, tokenizer)
    finally:
        torch.set_default_dtype(torch.float32)
    extractor: Any = WhisperFeatureExtractor
    mel = extractor(feature_size=128, chunk_length=300)
    patch = 16 if model_type == "qwen3_omni_moe" else 14
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=448 * 448, patch_size=patch)
    model = build_model(model_type, raw.eval(), tokenizer, mel, images, limits, graphs=graphs)
    model.suppressed_codes[list(model.codec_stop_tokens)] = True
    model.text_stop_tokens = model.codec_stop_tokens = frozenset()
    return model


def _qwen2_5(size: str, tokenizer: Any) -> Any:
    config = qwen2_5_config(tokenizer)
    if size != "tiny":
        config = Qwen2_5OmniConfig(**_enlarge_qwen2_5(config.to_dict(), size))
    model: Any = Qwen2_5OmniForConditionalGeneration(config)
    dit = model.config.token2wav_config.dit_config
    voice = {"cond": torch.randn(1, dit.enc_emb_dim), "ref_mel": torch.randn(1, 300, dit.mel_dim)}
    model.speaker_map["Chelsie"] = {"bos_token": tokenizer.convert_tokens_to_ids("<|tts_spk_bos|>"), **voice}
    return model


def _qwen3(tokenizer: Any) -> Any:
    config = Qwen3OmniMoeConfig(**_enlarge_qwen3(qwen3_config(tokenizer).to_dict()))
    model: Any = Qwen3OmniMoeForConditionalGeneration(config)
    tiny.fill_talker_experts(model, SPREAD)
    return model


def _rope(section: list[int] | None, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, **({"mrope_section": section} if section else {}), **more}


def _enlarge_qwen2_5(config: dict[str, Any], size: str) -> dict[str, Any]:
    """Dimensions as in the published configurations."""
    is_7b, thinker, talker = size == "7b", config["thinker_config"], config["talker_config"]
    hidden, layers, heads, kv, wide = (3584, 28, 28, 4, 18944) if is_7b else (2048, 36, 16, 2, 11008)
    thinker["text_config"].update(
        vocab_size=152064 if is_7b else 151936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=wide,
        rope_parameters=_rope([16, 24, 24]),
        layer_types=None,
        **STD,
    )
    thinker["vision_config"].update(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=hidden,
        fullatt_block_indexes=[7, 15, 23, 31],
        **STD,
    )
    thinker["audio_config"].update(_whisper(hidden))
    _enlarge_qwen2_5_talker(talker, is_7b, hidden)
    vocoder = {"dit_config": dict(STD), "bigvgan_config": dict(STD)}
    return {"thinker_config": thinker, "talker_config": talker, "token2wav_config": vocoder}


def _enlarge_qwen2_5_talker(talker: dict[str, Any], is_7b: bool, hidden: int) -> None:
    talker.update(
        vocab_size=8448,
        embedding_size=hidden,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=12 if is_7b else 14,
        num_key_value_heads=4 if is_7b else 2,
        head_dim=128 if is_7b else 64,
        intermediate_size=18944 if is_7b else 4864,
        rope_parameters=_rope([16, 24, 24] if is_7b else [16, 8, 8]),
        layer_types=None,
        tts_codec_pad_token_id=8292,
        tts_codec_start_token_id=8293,
        tts_codec_end_token_id=8294,
        tts_codec_mask_token_id=8296,
        **STD,
    )


def _enlarge_qwen3(config: dict[str, Any]) -> dict[str, Any]:
    """Dimensions as in the published configuration."""
    thinker, talker = config["thinker_config"], config["talker_config"]
    _enlarge_qwen3_thinker(thinker)
    _enlarge_qwen3_talker(talker)
    names = ("im_start_token_id", "im_end_token_id", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id")
    ids = {name: config[name] for name in (*names, "system_token_id", "user_token_id", "assistant_token_id")}
    return {"thinker_config": thinker, "talker_config": talker, "code2wav_config": dict(STD), **ids}


def _enlarge_qwen3_thinker(thinker: dict[str, Any]) -> None:
    thinker["text_config"].update(
        vocab_size=152064,
        hidden_size=2048,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        rope_parameters=_rope([24, 20, 20], mrope_interleaved=True),
        **STD,
    )
    thinker["vision_config"].update(
        depth=27,
        hidden_size=1152,
        intermediate_size=4304,
        num_heads=16,
        out_hidden_size=2048,
        num_position_embeddings=2304,
        deepstack_visual_indexes=[8, 16, 24],
        **STD,
    )
    thinker["audio_config"].update(_whisper(2048), downsample_hidden_size=480)


def _enlarge_qwen3_talker(talker: dict[str, Any]) -> None:
    # `to_dict` also writes this older name, which would take precedence.
    talker["text_config"].pop("num_local_experts", None)
    talker["text_config"].update(
        vocab_size=3072,
        hidden_size=1024,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=6,
        moe_intermediate_size=384,
        shared_expert_intermediate_size=768,
        rope_parameters=_rope([24, 20, 20], mrope_interleaved=True),
        **STD,
    )
    talker["code_predictor_config"].update(
        vocab_size=2048,
        hidden_size=1024,
        num_hidden_layers=5,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        num_code_groups=16,
        layer_types=None,
        rope_parameters=_rope(None),
        **STD,
    )
    special = ("codec_pad_id", "codec_bos_id", "codec_eos_token_id", "codec_nothink_id", "codec_think_bos_id")
    talker.update({name: 2150 + n for n, name in enumerate(special)}, codec_think_eos_id=2157, num_code_groups=16)
    talker.update(thinker_hidden_size=2048, accept_hidden_layer=24, speaker_id={"ethan": 2301, "chelsie": 2302})


def _whisper(output: int) -> dict[str, Any]:
    return {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "output_dim": output,
        **STD,
    }
