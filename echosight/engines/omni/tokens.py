"""Text and its tokens: Qwen's chat markers around what people say, and deltas of text out of tokens."""

from __future__ import annotations

import codecs
from typing import Any


class Tokens:
    """The tokenizer, with what users write never taken for a marker."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        marker = tokenizer.convert_tokens_to_ids
        self.start: int = marker("<|im_start|>")
        self.end: int = marker("<|im_end|>")
        self.audio_start: int = marker("<|audio_bos|>" if self._knows("<|audio_bos|>") else "<|audio_start|>")
        self.audio_end: int = marker("<|audio_eos|>" if self._knows("<|audio_eos|>") else "<|audio_end|>")
        self.image_start: int = marker("<|vision_bos|>" if self._knows("<|vision_bos|>") else "<|vision_start|>")
        self.image_end: int = marker("<|vision_eos|>" if self._knows("<|vision_eos|>") else "<|vision_end|>")
        self.footer = (self.end, *self.encode("\n"))
        added = tokenizer.added_tokens_decoder.items()
        self._markers = frozenset(token for token, entry in added if entry.special)
        self._bytes = _bytes_of_letters()

    def encode(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def header(self, role: str) -> tuple[int, ...]:
        return (self.start, *self.encode(f"{role}\n"))

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for a marker."""
        if token in self._markers:
            return b""
        letters = self._tokenizer.convert_ids_to_tokens(token) or ""
        return bytes(self._bytes[letter] for letter in letters if letter in self._bytes)

    def _knows(self, marker: str) -> bool:
        token = self._tokenizer.convert_tokens_to_ids(marker)
        return token is not None and token != self._tokenizer.unk_token_id


class TextStream:
    """Whole characters out of tokens that may hold parts of one."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""

    def push(self, token: int) -> str:
        return self._add(self._decoder.decode(self._tokens.bytes_of(token)))

    def finish(self) -> str:
        return self._add(self._decoder.decode(b"", final=True))

    def _add(self, delta: str) -> str:
        self.text += delta
        return delta


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for letters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
