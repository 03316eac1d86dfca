"""Objects with exactly the methods of MiniCPM-o 2.6 and 4.5. Their reply lists the inputs that they have read."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

WORDS_PER_CHUNK = 2


@dataclass
class OmniOutput:
    text: str | None = None
    spk_embeds: Any = None
    audio_wav: Any = None
    sampling_rate: int | None = None


class _Model:
    def __init__(self) -> None:
        self.read: list[str] = []
        self.session_id: str | None = None
        self.steps = 0

    def _append(self, session_id: str, msgs: list[dict[str, Any]]) -> None:
        assert session_id is not None
        assert len(msgs) == 1
        message = deepcopy(msgs)[0]
        assert message["role"] in ["system", "user", "assistant"]
        self.session_id = session_id
        self.read += [f"{message['role'][0]}:{self._describe(part)}" for part in message["content"]]

    def _describe(self, part: Any) -> str:
        if isinstance(part, np.ndarray):
            assert part.dtype == np.float32
            return f"{len(part) / 16_000:.1f}s"
        if isinstance(part, Image.Image):
            return f"{part.width}x{part.height}"
        return str(part).replace("\n", "").replace("<|im_end|>", ".").replace("<|im_start|>", ".").replace(" ", "_")

    def _words(self, limit: int) -> list[str]:
        words = f"{' '.join(self.read)} steps:{self.steps} end".split()[:limit]
        return [" ".join(words[n : n + WORDS_PER_CHUNK]) + " " for n in range(0, len(words), WORDS_PER_CHUNK)]


class MiniCPMO26(_Model):
    llm_generate_completed = False

    def get_sys_prompt(self, ref_audio: Any = None, mode: str = "default", language: str = "zh") -> dict[str, Any]:
        voice = ["clone", ref_audio, "speak"] if ref_audio is not None else []
        return {"role": "user", "content": [f"{mode}/{language}", *voice]}

    def reset_session(self) -> None:
        self.read = []
        self.session_id = None

    def streaming_prefill(
        self,
        session_id: str,
        msgs: list[dict[str, Any]],
        tokenizer: Any,
        omni_input: bool = True,
        max_slice_nums: int | None = None,
        ls_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        assert tokenizer == "tokenizer"
        self._append(session_id, msgs)

    def streaming_generate(
        self,
        session_id: str,
        tokenizer: Any,
        max_new_tokens: int = 512,
        min_new_tokens: int = 0,
        sampling: bool = True,
        generate_audio: bool = True,
        enable_regenerate: bool = False,
        **kwargs: Any,
    ) -> Iterator[Any]:
        self.llm_generate_completed = False
        chunks = self._words(max_new_tokens)
        for n, text in enumerate(chunks):
            self.steps += 1
            if "crash" in text:
                raise RuntimeError("CUDA error")
            last = n == len(chunks) - 1
            self.llm_generate_completed = last and text.strip().endswith("end")
            text += "<|tts_eos|>" if last else ""
            wav = np.full(2400, 0.5, np.float32)
            yield OmniOutput(text=text, audio_wav=wav, sampling_rate=24_000) if generate_audio else {"text": text}


class MiniCPMO45(_Model):
    token2wav_cache: Any = None

    def get_sys_prompt(
        self, ref_audio: Any = None, mode: str = "default", language: str = "en", ref_audio_max_ms: int | None = None
    ) -> dict[str, Any]:
        voice = ["clone", ref_audio, "speak"] if ref_audio is not None else []
        return {"role": "system", "content": [f"{mode}/{language}", *voice]}

    def reset_session(self, reset_token2wav_cache: bool = True) -> None:
        self.read = []
        self.session_id = None
        if reset_token2wav_cache:
            self.token2wav_cache = None

    def init_token2wav_cache(self, prompt_speech_16k: Any) -> None:
        self.token2wav_cache = prompt_speech_16k

    def streaming_prefill(
        self,
        session_id: str,
        msgs: list[dict[str, Any]],
        tokenizer: Any = None,
        omni_mode: bool = True,
        max_slice_nums: int | None = None,
        use_tts_template: bool = True,
        enable_thinking: bool = False,
        is_last_chunk: bool = False,
        stream_input: bool | None = None,
        **kwargs: Any,
    ) -> str:
        self._append(session_id, msgs)
        if is_last_chunk and msgs[0]["role"] == "user":
            self.read.append("last")
        return ""

    def streaming_generate(
        self,
        session_id: str,
        tokenizer: Any = None,
        bos_input: str | None = None,
        generate_audio: bool = True,
        audio_token_chunk_size: int = 25,
        max_new_tokens: int = 256,
        do_sample: bool = True,
        **kwargs: Any,
    ) -> Iterator[tuple[Any, Any]]:
        for text in self._words(max_new_tokens):
            self.steps += 1
            if generate_audio:
                assert self.token2wav_cache is not None
                yield np.full((1, 2400), 0.5, np.float32), text
            else:
                yield text, False


def load26(source: str) -> tuple[Any, Any, Path]:
    return MiniCPMO26(), "tokenizer", Path(source)


def load45(source: str) -> tuple[Any, Any, Path]:
    return MiniCPMO45(), SimpleNamespace(), Path(source)


def write_voice(file: Path) -> None:
    with wave.open(str(file), "wb") as voice:
        voice.setnchannels(1)
        voice.setsampwidth(2)
        voice.setframerate(16_000)
        voice.writeframes(bytes(48_000))
