"""Writes tiny random checkpoints of the models that run in this process, in the layout of published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as installed
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

transformers: Any = installed

CORPUS = [
    "system user assistant tool hello world how are you today?",
    "the quick brown fox jumps over the lazy dog",
    "what do you see and hear in this room? Answer in one sentence.",
]

CHATML = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "Call with <tool_call>.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>\n{{ c['function'] | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _bpe() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return bpe


def tokenizer(template: str | None = CHATML) -> Any:
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_bpe(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    specials = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok.add_special_tokens({"additional_special_tokens": specials})
    tok.add_tokens([AddedToken(mark, special=False) for mark in ("<tool_call>", "</tool_call>")])
    tok.chat_template = template
    return tok


def _save(folder: Path, model: Any, tok: Any) -> Path:
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[tok.eos_token_id, tok.pad_token_id], pad_token_id=tok.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.12,
}


def write_llama(folder: Path, template: str | None = CHATML, **changes: Any) -> Path:
    """A text model of 150 k parameters."""
    torch.manual_seed(0)
    tok = tokenizer(template)
    sizes = {**SIZES, **changes}
    config = transformers.LlamaConfig(
        vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=None, **sizes
    )
    return _save(folder, transformers.LlamaForCausalLM(config), tok)


def write_gpt_oss(folder: Path) -> Path:
    """A text model with attention sinks and every other layer seeing 16 tokens only."""
    torch.manual_seed(0)
    tok = tokenizer()
    config = transformers.GptOssConfig(
        vocab_size=len(tok),
        head_dim=16,
        sliding_window=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **SIZES,
    )
    return _save(folder, transformers.GptOssForCausalLM(config), tok)


def write_qwen_vl(folder: Path) -> Path:
    """A tiny Qwen2.5-VL, with three-dimensional positions."""
    torch.manual_seed(0)
    tok = tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **SIZES,
            "vocab_size": len(tok),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "eos_token_id": tok.eos_token_id,
            "pad_token_id": tok.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    _save(folder, transformers.Qwen2_5_VLForConditionalGeneration(config), tok)
    transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(folder)
    return folder


def write_vits(folder: Path) -> Path:
    """A voice of 16 kHz that speaks gibberish."""
    torch.manual_seed(0)
    letters = [*"_ abcdefghijklmnopqrstuvwxyz'-.,?!", "<unk>"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: n for n, letter in enumerate(letters)}), "utf-8")
    tok = transformers.VitsTokenizer(
        str(vocabulary), pad_token="_", unk_token="<unk>", language="eng", add_blank=True, phonemize=False
    )
    config = transformers.VitsConfig(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        flow_size=32,
        spectrogram_bins=65,
        posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        upsample_initial_channel=64,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        depth_separable_channels=2,
        depth_separable_num_layers=2,
        duration_predictor_flow_bins=4,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=32,
        sampling_rate=16_000,
    )
    transformers.VitsModel(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
