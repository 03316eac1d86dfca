"""The process of one MiniCPM-o model, in the environment that the model's code needs; it serves one conversation.

Each request is one frame of JSON: steps to prefill, or a reply to generate; audio and images in it are base64. A reply
comes as PARTIAL (text) and AUDIO (PCM16 at `OUTPUT_SAMPLE_RATE`) frames, as many ahead of the reader as its credit
allows.

This environment holds the model's requirements only, so of this package the file imports modules without others.
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

OUTPUT_SAMPLE_RATE = 24_000
MIN_SAMPLES = 1_600
"""A tenth of a second. The audio encoder makes no token of less."""

SESSION = "echosight"
SPECIAL_TOKENS = re.compile(r"<\|[^|<>]*\|>|</?s>")
LOADER = "echosight.engines.minicpmo.process:load_model"

REPLAYED_REPLY = "<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
"""An earlier reply, behind the user's message. The models do not mark up an assistant message, so this does."""

log = logging.getLogger(__name__)


class MiniCpm(Protocol):
    """One interface to both versions of the model."""

    def reset(self, system: str, language: str, voice: Any) -> None:
        """Begin a conversation. `voice` is None or float32 samples (n,) at 16 kHz of a voice to imitate."""

    def prefill(self, role: str, content: list[Any], last: bool) -> None:
        """Append texts, PIL images and float32 samples (n,) at 16 kHz, at most a second each.

        `last` marks the end of the user's message.
        """

    def generate(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Text deltas, each with its float samples at 24 kHz (a tensor or array of any shape) or None."""

    @property
    def completed(self) -> bool:
        """Whether the last reply reached its end and was not cut by a token limit."""


class MiniCpm26:
    """MiniCPM-o 2.6 (https://huggingface.co/openbmb/MiniCPM-o-2_6, ``modeling_minicpmo.py``)."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder

    def reset(self, system: str, language: str, voice: Any) -> None:
        self._model.reset_session()
        prompt = self._model.get_sys_prompt(ref_audio=voice, mode="omni", language=language)
        self._append(prompt["role"], [*prompt["content"], *([system] if system else [])])

    def prefill(self, role: str, content: list[Any], last: bool) -> None:
        self._append(role, [part if isinstance(part, str) else _pad_audio(part) for part in content])

    def generate(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        outputs = self._model.streaming_generate(SESSION, self._tokenizer, generate_audio=speech, **options)
        for output in outputs:
            # Without speech, the model yields dictionaries.
            yield (output.text, output.audio_wav) if speech else (output["text"], None)

    @property
    def completed(self) -> bool:
        return bool(getattr(self._model, "llm_generate_completed", True))

    def _append(self, role: str, content: list[Any]) -> None:
        self._model.streaming_prefill(SESSION, [{"role": role, "content": content}], self._tokenizer)


class MiniCpm45:
    """MiniCPM-o 4.5 (https://huggingface.co/openbmb/MiniCPM-o-4_5, ``modeling_minicpmo.py``).

    It can only imitate a voice, so without a sample it uses the one that the checkpoint brings.
    """

    completed = True

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._default_voice = next(iter(sorted(folder.glob("assets/*ref_audio*.wav"))), None)
        self._can_speak = False

    def reset(self, system: str, language: str, voice: Any) -> None:
        if voice is None and self._default_voice is not None:
            voice = _read_wav(self._default_voice)
        self._model.reset_session()
        self._can_speak = voice is not None
        if voice is not None:
            self._model.init_token2wav_cache(voice)
        prompt = self._model.get_sys_prompt(ref_audio=voice, mode="omni", language=language)
        content = [*prompt["content"], *([system] if system else [])]
        self._model.streaming_prefill(SESSION, [{"role": "system", "content": content}])

    def prefill(self, role: str, content: list[Any], last: bool) -> None:
        self._model.streaming_prefill(SESSION, [{"role": role, "content": content}], is_last_chunk=last)

    def generate(self, speech: bool, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
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


class WorkerLoop:
    """Serves the requests one after the other; a cancelled request stops within one step of the model."""

    def __init__(self, pipe: WorkerPipe, model: MiniCpm) -> None:
        self._pipe = pipe
        self._model = model
        self._queue: list[IpcFrame] = []
        self._ended: set[int] = set()
        """Channels that the server closed."""
        self._credit = 0

    def run(self) -> None:
        """Report that the model is loaded, then serve until the server closes the pipe."""
        self._pipe.send(FrameType.READY, 0, json.dumps({"rate": OUTPUT_SAMPLE_RATE}).encode())
        while True:
            self._receive(None if not self._queue else 0)
            if self._queue:
                self._serve(self._queue.pop(0))

    def _receive(self, wait_s: float | None) -> None:
        for frame in self._pipe.receive(wait_s):
            match frame.kind:
                case FrameType.BEGIN:
                    self._queue.append(frame)
                case FrameType.END:
                    self._queue = [begin for begin in self._queue if begin.channel != frame.channel]
                    self._ended.add(frame.channel)
                case FrameType.CREDIT:
                    self._credit += int.from_bytes(frame.payload, "little")

    def _serve(self, begin: IpcFrame) -> None:
        self._ended.clear()
        request = json.loads(begin.payload)
        try:
            if request["do"] == "generate":
                self._generate(begin.channel, request)
                return
            for step in request["steps"]:
                self._prefill(step)
            self._pipe.send(FrameType.DONE, begin.channel)
        except Exception as error:  # the model's remote code may raise anything
            log.exception("%s failed", request["do"])
            self._pipe.send(FrameType.FAIL, begin.channel, f"{type(error).__name__}: {error}".encode())

    def _prefill(self, step: dict[str, Any]) -> None:
        if step["role"] == "reset":
            voice = _decode_part({"pcm": step["voice"]}) if step["voice"] else None
            self._model.reset(step["system"], step["language"], voice)
        elif step["role"] == "assistant":
            self._model.prefill("assistant", [REPLAYED_REPLY.format(step["text"])], True)
        else:
            self._model.prefill("user", [_decode_part(part) for part in step["content"]], step["last"])

    def _generate(self, channel: int, request: dict[str, Any]) -> None:
        self._credit = request["credit"]
        outputs = self._model.generate(request["speech"], request["options"])
        try:
            for raw, wave in outputs:
                if text := SPECIAL_TOKENS.sub("", raw):
                    self._pipe.send(FrameType.PARTIAL, channel, text.encode())
                if wave is not None:
                    self._pipe.send(FrameType.AUDIO, channel, _to_pcm(wave))
                self._credit -= 1
                self._receive(0)
                while self._credit <= 0 and channel not in self._ended:
                    self._receive(None)
                if channel in self._ended:
                    return
        finally:
            close = getattr(outputs, "close", None)
            if close is not None:
                close()
        self._pipe.send(FrameType.DONE, channel, json.dumps({"completed": self._model.completed}).encode())


def _decode_part(part: dict[str, str]) -> Any:
    """A part of a step as the models take it: str, float32 samples (n,), or a PIL image."""
    from PIL import Image

    from echosight.audio.pcm import pcm_to_float

    if "text" in part:
        return SPECIAL_TOKENS.sub("", part["text"])
    if "pcm" in part:
        return pcm_to_float(base64.b64decode(part["pcm"]))
    return Image.open(io.BytesIO(base64.b64decode(part["image"]))).convert("RGB")


def _pad_audio(part: Any) -> Any:
    """Audio of at least `MIN_SAMPLES`; anything else as it is."""
    import numpy as np

    if isinstance(part, np.ndarray) and len(part) < MIN_SAMPLES:
        return np.pad(part, (0, MIN_SAMPLES - len(part)))
    return part


def _to_pcm(wave: Any) -> bytes:
    """PCM16 of float samples, a tensor or array of any shape."""
    import numpy as np

    from echosight.audio.pcm import float_to_pcm

    return float_to_pcm(wave.detach().float().cpu().numpy() if hasattr(wave, "detach") else np.asarray(wave))


def _read_wav(file: Path) -> Any:
    """The first channel as float32 samples (n,) at `INPUT_SAMPLE_RATE`."""
    import soundfile

    samples, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    if rate == INPUT_SAMPLE_RATE:
        return samples[:, 0]
    import librosa

    return librosa.resample(samples[:, 0], orig_sr=rate, target_sr=INPUT_SAMPLE_RATE)


def load_model(source: str) -> tuple[Any, Any, Path]:
    """The model on the GPU in bfloat16, its tokenizer and its folder. Raises `SetupError` where it is not found."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from echosight.engines.runtime.huggingface.source import fetch

    # All files: the remote code and its assets have no fixed names.
    folder = fetch(source, ["*"])
    kwargs = {"trust_remote_code": True, "attn_implementation": "sdpa", "torch_dtype": torch.bfloat16}
    model: Any = AutoModel.from_pretrained(folder, **kwargs, init_vision=True, init_audio=True, init_tts=True)
    model = model.eval().cuda()
    model.init_tts()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True), folder


def wrap_model(model: Any, tokenizer: Any, folder: Path) -> MiniCpm:
    """The interface to a loaded model; its methods tell the version, because the remote code has no version number."""
    cls = MiniCpm45 if hasattr(model, "init_token2wav_cache") else MiniCpm26
    return cls(model, tokenizer, folder)


def main(source: str, loader: str = LOADER) -> None:
    """Load the model of `source` with `loader`, ``module:function``, and serve it."""
    logging.basicConfig(level=logging.WARNING)
    pipe = WorkerPipe()
    module, _, function = loader.partition(":")
    model, tokenizer, folder = getattr(importlib.import_module(module), function)(source)
    WorkerLoop(pipe, wrap_model(model, tokenizer, folder)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
