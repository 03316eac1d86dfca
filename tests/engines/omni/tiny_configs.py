"""Configurations of both families, true in shape and tiny in size."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5OmniConfig, Qwen3OmniMoeConfig

SPREAD = 0.12
"""Initial standard deviation: about 1/sqrt(hidden), so that activations stay near 1 and small errors show."""
HIDDEN = 64
STD = {"initializer_range": SPREAD}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN3_CODES = {
    "codec_eos_token_id": 70,
    "codec_nothink_id": 71,
    "codec_think_bos_id": 72,
    "codec_think_eos_id": 73,
    "codec_pad_id": 74,
    "codec_bos_id": 75,
}


def _rope(section: list[int] | None = None, *, interleaved: bool = False) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    if section is not None:
        rope["mrope_section"] = section
    if interleaved:
        rope["mrope_interleaved"] = True
    return rope


def qwen2_5_config(tok: Any) -> Qwen2_5OmniConfig:
    """A Qwen2.5-Omni of 465 k parameters for the tokenizer `tok`."""
    markers = _qwen2_5_markers(tok)
    return Qwen2_5OmniConfig(
        thinker_config=_qwen2_5_thinker(tok, markers),
        talker_config=_qwen2_5_talker(tok, markers),
        token2wav_config=_qwen2_5_vocoder(),
        enable_audio_output=True,
    )


def _qwen2_5_markers(tok: Any) -> dict[str, int]:
    i = tok.convert_tokens_to_ids
    return {
        "audio_token_index": i("<|AUDIO|>"),
        "image_token_index": i("<|IMAGE|>"),
        "video_token_index": i("<|VIDEO|>"),
        "audio_start_token_id": i("<|audio_bos|>"),
        "audio_end_token_id": i("<|audio_eos|>"),
        "vision_start_token_id": i("<|vision_bos|>"),
        "vision_end_token_id": i("<|vision_eos|>"),
    }


def _qwen2_5_thinker(tok: Any, markers: dict[str, int]) -> dict[str, Any]:
    i = tok.convert_tokens_to_ids
    return {
        "text_config": {
            "vocab_size": -(-len(tok) // 64) * 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "max_position_embeddings": 32768,
            "rope_parameters": _rope([2, 3, 3]),
            "tie_word_embeddings": False,
            "eos_token_id": i("<|im_end|>"),
            "pad_token_id": i("<|endoftext|>"),
            "num_hidden_layers": 2,
            **HEADS,
            **STD,
        },
        "audio_config": {**_audio_config(), "n_window": 100},
        "vision_config": {
            **_vision_config(),
            "depth": 2,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        "user_token_id": i("<|im_start|>"),
        "pad_token_id": i("<|endoftext|>"),
        **markers,
        **STD,
    }


def _qwen2_5_talker(tok: Any, markers: dict[str, int]) -> dict[str, Any]:
    i = tok.convert_tokens_to_ids
    return {
        "vocab_size": 96,
        "tts_codec_pad_token_id": 80,
        "tts_codec_start_token_id": 81,
        "tts_codec_end_token_id": 82,
        "tts_codec_mask_token_id": 84,
        "tts_text_pad_token_id": i("<|tts_text_pad|>"),
        "tts_text_start_token_id": i("<|tts_bos|>"),
        "tts_text_end_token_id": i("<|tts_eos|>"),
        "embedding_size": HIDDEN,
        "hidden_size": 48,
        "intermediate_size": 96,
        "head_dim": 12,
        "rope_parameters": _rope([2, 2, 2]),
        "num_hidden_layers": 2,
        **HEADS,
        **markers,
        **STD,
    }


def _qwen2_5_vocoder() -> dict[str, Any]:
    dit = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 16,
        "emb_dim": 16,
        "block_size": 24,
        "look_ahead_layers": [1],
        "look_backward_layers": [0, 2],
        "repeats": 2,
        "num_embeds": 96,
        "mel_dim": 80,
        "enc_emb_dim": 16,
        "enc_dim": 16,
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
        **STD,
    }
    bigvgan = {
        "mel_dim": 80,
        "upsample_initial_channel": 64,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [5, 3, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
        **STD,
    }
    return {"dit_config": dit, "bigvgan_config": bigvgan}


def _audio_config() -> dict[str, Any]:
    """The audio encoder, as far as both families share it."""
    return {
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "output_dim": HIDDEN,
        **STD,
    }


def _vision_config() -> dict[str, Any]:
    """The image encoder, as far as both families share it."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        **STD,
    }


def qwen3_config(tok: Any) -> Qwen3OmniMoeConfig:
    """A Qwen3-Omni of 710 k parameters for the tokenizer `tok`."""
    i = tok.convert_tokens_to_ids
    markers = {
        "audio_token_id": i("<|AUDIO|>"),
        "image_token_id": i("<|IMAGE|>"),
        "video_token_id": i("<|VIDEO|>"),
        "audio_start_token_id": i("<|audio_bos|>"),
        "vision_start_token_id": i("<|vision_bos|>"),
    }
    roles = {
        f"{role}_token_id": tok(role, add_special_tokens=False)["input_ids"][0]
        for role in ("system", "user", "assistant")
    }
    return Qwen3OmniMoeConfig(
        thinker_config=_qwen3_thinker(tok, markers, roles["user_token_id"]),
        talker_config=_qwen3_talker(markers),
        code2wav_config=_qwen3_vocoder(),
        enable_audio_output=True,
        im_start_token_id=i("<|im_start|>"),
        im_end_token_id=i("<|im_end|>"),
        tts_pad_token_id=i("<|tts_text_pad|>"),
        tts_bos_token_id=i("<|tts_bos|>"),
        tts_eos_token_id=i("<|tts_eos|>"),
        **roles,
    )


def _qwen3_thinker(tok: Any, markers: dict[str, int], user_token: int) -> dict[str, Any]:
    i = tok.convert_tokens_to_ids
    return {
        "text_config": {
            "vocab_size": -(-len(tok) // 64) * 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "rope_parameters": _rope([4, 2, 2], interleaved=True),
            "max_position_embeddings": 32768,
            "eos_token_id": i("<|im_end|>"),
            "pad_token_id": i("<|endoftext|>"),
            **HEADS,
            **EXPERTS,
            **STD,
        },
        "audio_config": {
            **_audio_config(),
            "n_window": 50,
            "n_window_infer": 800,
            "conv_chunksize": 500,
            "downsample_hidden_size": 8,
        },
        "vision_config": {
            **_vision_config(),
            "depth": 3,
            "patch_size": 16,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1],
        },
        "user_token_id": user_token,
        **markers,
        **STD,
    }


def _qwen3_talker(markers: dict[str, int]) -> dict[str, Any]:
    return {
        "text_config": {
            "vocab_size": 64 + 1024,
            "hidden_size": 48,
            "intermediate_size": 64,
            "shared_expert_intermediate_size": 32,
            "num_hidden_layers": 2,
            "head_dim": 12,
            "rope_parameters": _rope([2, 2, 2], interleaved=True),
            **HEADS,
            **EXPERTS,
            **STD,
        },
        "code_predictor_config": {
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "head_dim": 12,
            "num_code_groups": 4,
            "rope_parameters": _rope(),
            **HEADS,
            **STD,
        },
        "spatial_merge_size": 2,
        "num_code_groups": 4,
        "thinker_hidden_size": HIDDEN,
        "accept_hidden_layer": 1,
        "speaker_id": {"ethan": 76, "chelsie": 77},
        **QWEN3_CODES,
        **markers,
        **STD,
    }


def _qwen3_vocoder() -> dict[str, Any]:
    return {
        "codebook_size": 64,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 72,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_quantizers": 4,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
        "decoder_dim": 64,
        "layer_scale_initial_scale": 0.3,
        "rope_parameters": _rope(),
        **STD,
    }
