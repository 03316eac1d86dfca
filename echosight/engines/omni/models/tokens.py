"""Text to tokens and back: Qwen's chat markers around messages, and text deltas from generated tokens."""

from __future__ import annotations

import codecs
from typing import Any


class ChatTokens:
    """A Qwen tokenizer and its markers (ChatML). Text from users never becomes a marker."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        marker = tokenizer.convert_tokens_to_ids
        self.start: int = marker("<|im_start|>")
        self.end: int = marker("<|im_end|>")
        self.audio_start: int = marker("<|audio_bos|>" if self._has("<|audio_bos|>") else "<|audio_start|>")
        self.audio_end: int = marker("<|audio_eos|>" if self._has("<|audio_eos|>") else "<|audio_end|>")
        self.image_start: int = marker("<|vision_bos|>" if self._has("<|vision_bos|>") else "<|vision_start|>")
        self.image_end: int = marker("<|vision_eos|>" if self._has("<|vision_eos|>") else "<|vision_end|>")
        self.footer = (self.end, *self.encode("\n"))
        """The tokens that end a message."""
        added = tokenizer.added_tokens_decoder.items()
        self._markers = frozenset(token for token, entry in added if entry.special)
        self._byte_of_letter = _byte_level_alphabet()

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of plain text; a marker in it is split into ordinary tokens."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def header(self, role: str) -> tuple[int, ...]:
        """The tokens that begin a message."""
        return (self.start, *self.encode(f"{role}\n"))

    def to_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, possibly part of a character; empty for a marker."""
        if token in self._markers:
            return b""
        letters = self._tokenizer.convert_ids_to_tokens(token) or ""
        return bytes(self._byte_of_letter[letter] for letter in letters if letter in self._byte_of_letter)

    def _has(self, marker: str) -> bool:
        token = self._tokenizer.convert_tokens_to_ids(marker)
        return token is not None and token != self._tokenizer.unk_token_id


class TextDecoder:
    """Text deltas of whole characters from tokens that may hold parts of one."""

    def __init__(self, tokens: ChatTokens) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        """All text so far."""

    def push(self, token: int) -> str:
        """The characters that the token completes."""
        return self._append(self._decoder.decode(self._tokens.to_bytes(token)))

    def flush(self) -> str:
        """At the end: U+FFFD for an incomplete character, else an empty string."""
        return self._append(self._decoder.decode(b"", final=True))

    def _append(self, delta: str) -> str:
        self.text += delta
        return delta


def _byte_level_alphabet() -> dict[str, int]:
    """Letter -> byte of GPT-2's byte-level BPE (`bytes_to_unicode` in its ``encoder.py``).

    Printable bytes stand for themselves, the others are letters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
