"""`python tiny_gguf.py FILE`: writes a random Llama of 100 k parameters that generates English words without end."""

from __future__ import annotations

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 128, 2048
WORDS = "hello there how can i help you today the a of and to is in it what yes no ok"
WEIGHT_STD = 0.3
"""Standard deviation of the weights: enough for replies to depend on the prompt."""

SUPPRESSED_LOGIT = -1000.0
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *("\u2581" + word for word in WORDS.split()), ".", ",", "?"]
FIRST_WORD = 3 + len(BYTES)
"""Tokens before this one are never generated: bytes could form half a character, and `</s>` would end the reply."""

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def describe(file: gguf.GGUFWriter) -> None:
    """The sizes and the tokenizer."""
    file.add_name("tiny-random")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(INNER)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_vocab_size(len(TOKENS))
    kinds = gguf.TokenType
    words = len(TOKENS) - FIRST_WORD
    file.add_tokenizer_model("llama")
    file.add_token_list(TOKENS)
    file.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * len(BYTES) + [kinds.NORMAL] * words
    )
    file.add_token_scores([0.0] * FIRST_WORD + [-float(rank) for rank in range(words)])
    file.add_unk_token_id(0)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_chat_template(TEMPLATE)


def fill(file: gguf.GGUFWriter) -> None:
    """Random weights. The first channel is always 1 for every token, so it gives the outputs a bias."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * WEIGHT_STD).astype(np.float32)

    def without_bias(*shape: int) -> np.ndarray:
        weights = random(*shape)
        weights[0] = 0
        return weights

    embedding, output = random(len(TOKENS), WIDTH), random(len(TOKENS), WIDTH)
    embedding[:, 0] = 1
    output[:, 0] = [SUPPRESSED_LOGIT if token < FIRST_WORD else 0.0 for token in range(len(TOKENS))]
    file.add_tensor("token_embd.weight", embedding)
    file.add_tensor("output.weight", output)
    file.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v"):
            file.add_tensor(f"blk.{layer}.{name}.weight", random(WIDTH, WIDTH))
        file.add_tensor(f"blk.{layer}.attn_output.weight", without_bias(WIDTH, WIDTH))
        file.add_tensor(f"blk.{layer}.ffn_gate.weight", random(INNER, WIDTH))
        file.add_tensor(f"blk.{layer}.ffn_up.weight", random(INNER, WIDTH))
        file.add_tensor(f"blk.{layer}.ffn_down.weight", without_bias(WIDTH, INNER))
        for name in ("attn_norm", "ffn_norm"):
            file.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))


def write(path: str) -> None:
    file = gguf.GGUFWriter(path, "llama")
    describe(file)
    fill(file)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    write(sys.argv[1])
