"""MiniCPM-o's own process, in the environment that its code was written for: one model, one conversation.

It is told what to read and when to answer, in requests of one frame each (JSON; sounds and pictures as base64). An
answer comes as PARTIAL (text) and AUDIO (PCM16 at `OUTPUT_HZ`) frames, no further ahead of the reader than its credit.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from echosight.engines.runtime.ipc import FrameType, IpcFrame, WorkerPipe
from echosight.media import INPUT_SAMPLE_RATE

OUTPUT_HZ = 24_000
SHORTEST = 1_600
SESSION = "echosight"
MARKS = re.compile(r"<\|[^|<>]*\|>|</?s>")
LOADER = "echosight.engines.minicpmo.process:load_model"

REPLAYED = "<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
"""An answer of before, behind the user's message that it answers. Both models read such text as it stands."""

log = logging.getLogger(__name__)


class Talker(Protocol):
    """A model behind the methods that its version has."""

    def reset(self, system: str, language: str, voice: Any) -> None:
        """Begin a conversation. `voice`: float32 samples at 16 kHz to imitate, or None."""

    def read(self, role: str, content: list[Any], last: bool) -> None:
        """Texts, float32 samples at 16 kHz (a second at a time) and pictures; `last` of the user's message."""

    def answer(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Text deltas with the float samples spoken with them, or None."""

    @property
    def completed(self) -> bool:
        """Whether the last answer came to its end."""


class Talker26:
    """MiniCPM-o 2.6."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder

    def reset(self, system: str, language: str, voice: Any) -> None:
        self._model.reset_session()
        prompt = self._model.get_sys_prompt(ref_audio=voice, mode="omni", language=language)
        self._prefill(prompt["role"], [*prompt["content"], *([system] if system else [])])

    def read(self, role: str, content: list[Any], last: bool) -> None:
        self._prefill(role, [part if isinstance(part, str) else _long_enough(part) for part in content])

    def answer(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        pieces = self._model.streaming_generate(SESSION, self._tokenizer, generate_audio=speech, **options)
        for piece in pieces:
            # Text alone comes as dictionaries.
            yield (piece.text, piece.audio_wav) if speech else (piece["text"], None)

    @property
    def completed(self) -> bool:
        return bool(getattr(self._model, "llm_generate_completed", True))

    def _prefill(self, role: str, content: list[Any]) -> None:
        self._model.streaming_prefill(SESSION, [{"role": role, "content": content}], self._tokenizer)


class Talker45:
    """MiniCPM-o 4.5. It speaks with somebody's voice or not at all, so where no sample comes, it takes its own."""

    completed = True

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._own = next(iter(sorted(folder.glob("assets/*ref_audio*.wav"))), None)
        self._can_speak = False

    def reset(self, system: str, language: str, voice: Any) -> None:
        voice = _read_wav(self._own) if voice is None and self._own is not None else voice
        self._model.reset_session()
        self._can_speak = voice is not None
        if voice is not None:
            self._model.init_token2wav_cache(voice)
        prompt = self._model.get_sys_prompt(ref_audio=voice, mode="omni", language=language)
        content = [*prompt["content"], *([system] if system else [])]
        self._model.streaming_prefill(SESSION, [{"role": "system", "content": content}])

    def read(self, role: str, content: list[Any], last: bool) -> None:
        self._model.streaming_prefill(SESSION, [{"role": role, "content": content}], is_last_chunk=last)

    def answer(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        if speech and not self._can_speak:
            raise RuntimeError(
                "MiniCPM-o 4.5 needs a voice to imitate: a sample, or the model's assets/*ref_audio*.wav"
            )
        if not speech:
            for text, _ in self._model.streaming_generate(SESSION, generate_audio=False, **options):
                yield text or "", None
            return
        for wave, text in self._model.streaming_generate(SESSION, generate_audio=True, **options):
            yield text or "", wave


class Host:
    """Takes the requests one after the other."""

    def __init__(self, pipe: WorkerPipe, talker: Talker) -> None:
        self._pipe = pipe
        self._talker = talker
        self._waiting: list[IpcFrame] = []
        self._ended: set[int] = set()
        self._credit = 0

    def run(self) -> None:
        self._pipe.send(FrameType.READY, 0, json.dumps({"rate": OUTPUT_HZ}).encode())
        while True:
            self._listen(None if not self._waiting else 0)
            if self._waiting:
                self._serve(self._waiting.pop(0))

    def _listen(self, wait_s: float | None) -> None:
        for frame in self._pipe.receive(wait_s):
            match frame.kind:
                case FrameType.BEGIN:
                    self._waiting.append(frame)
                case FrameType.END:
                    self._waiting = [begin for begin in self._waiting if begin.channel != frame.channel]
                    self._ended.add(frame.channel)
                case FrameType.CREDIT:
                    self._credit += int.from_bytes(frame.payload, "little")

    def _serve(self, begin: IpcFrame) -> None:
        self._ended.clear()
        order = json.loads(begin.payload)
        try:
            if order["do"] == "answer":
                self._answer(begin.channel, order)
                return
            for step in order["steps"]:
                self._read(step)
            self._pipe.send(FrameType.DONE, begin.channel)
        except Exception as error:  # whatever remote code raises
            log.exception("%s failed", order["do"])
            self._pipe.send(FrameType.FAIL, begin.channel, f"{type(error).__name__}: {error}".encode())

    def _read(self, step: dict[str, Any]) -> None:
        if step["role"] == "reset":
            voice = _content({"pcm": step["voice"]}) if step["voice"] else None
            self._talker.reset(step["system"], step["language"], voice)
        elif step["role"] == "assistant":
            self._talker.read("assistant", [REPLAYED.format(step["text"])], True)
        else:
            self._talker.read("user", [_content(part) for part in step["content"]], step["last"])

    def _answer(self, channel: int, order: dict[str, Any]) -> None:
        self._credit = order["credit"]
        pieces = self._talker.answer(order["speech"], order["options"])
        try:
            for text, wave in pieces:
                if said := MARKS.sub("", text):
                    self._pipe.send(FrameType.PARTIAL, channel, said.encode())
                if wave is not None:
                    self._pipe.send(FrameType.AUDIO, channel, _pcm(wave))
                self._credit -= 1
                self._listen(0)
                while self._credit <= 0 and channel not in self._ended:
                    self._listen(None)
                if channel in self._ended:
                    return
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        self._pipe.send(FrameType.DONE, channel, json.dumps({"completed": self._talker.completed}).encode())


def _content(part: dict[str, str]) -> Any:
    import numpy as np
    from PIL import Image

    if "text" in part:
        return MARKS.sub("", part["text"])
    if "pcm" in part:
        return np.frombuffer(base64.b64decode(part["pcm"]), "<i2").astype(np.float32) / np.float32(32_768)
    return Image.open(io.BytesIO(base64.b64decode(part["image"]))).convert("RGB")


def _long_enough(part: Any) -> Any:
    """Sounds of a tenth of a second at least: the encoder makes no token of less."""
    import numpy as np

    if isinstance(part, np.ndarray) and len(part) < SHORTEST:
        return np.pad(part, (0, SHORTEST - len(part)))
    return part


def _pcm(wave: Any) -> bytes:
    import numpy as np

    samples = wave.detach().float().cpu().numpy() if hasattr(wave, "detach") else np.asarray(wave)
    return bytes((np.clip(np.ravel(samples), -1.0, 1.0) * 32_767).astype("<i2").tobytes())


def _read_wav(file: Path) -> Any:
    import soundfile

    samples, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    if rate == INPUT_SAMPLE_RATE:
        return samples[:, 0]
    import librosa

    return librosa.resample(samples[:, 0], orig_sr=rate, target_sr=INPUT_SAMPLE_RATE)


def load_model(source: str) -> tuple[Any, Any, Path]:
    """The model, its tokenizer and its folder."""
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModel, AutoTokenizer

    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    given = {"trust_remote_code": True, "attn_implementation": "sdpa", "torch_dtype": torch.bfloat16}
    model: Any = AutoModel.from_pretrained(folder, **given, init_vision=True, init_audio=True, init_tts=True)
    model = model.eval().cuda()
    model.init_tts()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True), folder


def talker_of(model: Any, tokenizer: Any, folder: Path) -> Talker:
    """By what the model can do: its code carries no version that could be trusted."""
    kind = Talker45 if hasattr(model, "init_token2wav_cache") else Talker26
    return kind(model, tokenizer, folder)


def main(source: str, loader: str = LOADER) -> None:
    logging.basicConfig(level=logging.WARNING)
    pipe = WorkerPipe()
    module, _, function = loader.partition(":")
    model, tokenizer, folder = getattr(importlib.import_module(module), function)(source)
    Host(pipe, talker_of(model, tokenizer, folder)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
