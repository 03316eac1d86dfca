"""Writes tiny random checkpoints with the true architecture of both families, in the layout of published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5OmniForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3OmniMoeForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.engines.omni.tiny_configs import SPREAD, qwen2_5_config, qwen3_config

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
    "<|tts_text_pad|>",
    "<|tts_bos|>",
    "<|tts_eos|>",
    "<|tts_spk_bos|>",
]
CORPUS = [
    *("system", "user", "assistant") * 5,
    "You are a helpful assistant. Hello world, what do you see and hear?",
    "The quick brown fox jumps over the lazy dog.",
]


def tokenizer() -> Any:
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(CORPUS * 40, trainer)
    model = json.loads(bpe.to_str())["model"]
    pairs: Any = [tuple(pair) for pair in model["merges"]]
    tok: Any = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=pairs,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tok.add_tokens([AddedToken(name, special=True) for name in SPECIALS], special_tokens=True)
    return tok


def write_qwen2_5(folder: Path) -> Path:
    """Write a tiny Qwen2.5-Omni."""
    torch.manual_seed(0)
    tok = tokenizer()
    Qwen2_5OmniForConditionalGeneration(qwen2_5_config(tok)).save_pretrained(folder)
    voice = {"bos_token": tok.convert_tokens_to_ids("<|tts_spk_bos|>"), "cond": torch.randn(1, 16)}
    voices = {name: {**voice, "ref_mel": torch.randn(1, 60, 80)} for name in ("Chelsie", "Ethan")}
    torch.save(voices, folder / "spk_dict.pt")
    images = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    _write_processors(folder, tok, images, chunk_length=300)
    return folder


def write_qwen3(folder: Path) -> Path:
    """Write a tiny Qwen3-Omni."""
    torch.manual_seed(0)
    tok = tokenizer()
    model = Qwen3OmniMoeForConditionalGeneration(qwen3_config(tok))
    fill_talker_experts(model, SPREAD)
    model.save_pretrained(folder)
    half = [0.5] * 3
    images = Qwen2VLImageProcessor(
        min_pixels=64 * 64, max_pixels=128 * 128, patch_size=16, image_mean=half, image_std=half
    )
    _write_processors(folder, tok, images, chunk_length=30)
    return folder


def fill_talker_experts(model: Any, spread: float) -> None:
    """Random weights where transformers 5.23 leaves uninitialized memory (and zeros in the routers)."""
    with torch.no_grad():
        for name, weight in model.talker.model.named_parameters():
            if ".mlp.experts." in name or name.endswith("mlp.gate.weight"):
                weight.normal_(0.0, spread)


def _write_processors(folder: Path, tok: Any, images: Any, *, chunk_length: int) -> None:
    tok.save_pretrained(folder)
    whisper: Any = WhisperFeatureExtractor
    extractor = whisper(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400, chunk_length=chunk_length)
    # Both processors write the same file; published repositories have them merged.
    merged = {**extractor.to_dict(), **images.to_dict(), "image_processor_type": "Qwen2VLImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(merged, default=list), "utf-8")
