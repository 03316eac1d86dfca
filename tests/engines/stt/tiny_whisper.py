"""A tiny random Whisper with the true layout of its vocabulary, converted for CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as installed
from tokenizers import AddedToken
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tests.engines.tiny_local import _bpe

transformers: Any = installed

SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in list(LANGUAGES)[:99]),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
TIMES = [f"<|{n * 0.02:.2f}|>" for n in range(1501)]


def _tokenizer() -> Any:
    # The ids of the special tokens follow those of the text, in Whisper's own order.
    written = json.loads(_bpe().to_str())["model"]
    vocabulary = dict(written["vocab"])
    for token in (*SPECIALS, *TIMES):
        vocabulary[token] = len(vocabulary)
    end = "<|endoftext|>"
    merges = [tuple(pair) for pair in written["merges"]]
    tokenizer = transformers.WhisperTokenizer(
        vocab=vocabulary, merges=merges, unk_token=end, bos_token=end, eos_token=end, pad_token=end
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIALS], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in TIMES])
    return tokenizer


def write_whisper(folder: Path) -> Path:
    """In `folder`/converted, the int8 model that faster-whisper reads."""
    from ctranslate2.converters import TransformersConverter

    # Nearly every seed writes something; 0 wrote nothing on some CPUs, which round differently.
    torch.manual_seed(5)
    tok = _tokenizer()
    number = tok.convert_tokens_to_ids
    start, end = number("<|startoftranscript|>"), number("<|endoftext|>")
    config = transformers.WhisperConfig(
        vocab_size=len(tok),
        num_mel_bins=80,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.12,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        max_length=64,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": number(f"<|{code}|>") for code in list(LANGUAGES)[:99]},
        task_to_id={"transcribe": number("<|transcribe|>"), "translate": number("<|translate|>")},
        no_timestamps_token_id=number("<|notimestamps|>"),
        suppress_tokens=[],
        begin_suppress_tokens=[end],
        alignment_heads=[[1, 0], [1, 1]],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(folder), copy_files=files).convert(str(folder / "converted"), quantization="int8")
    return folder / "converted"
