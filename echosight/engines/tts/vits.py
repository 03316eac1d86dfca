"""VITS voices of the Hugging Face hub (also MMS-TTS, over a thousand languages), by transformers."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.device import choose_device
from echosight.engines.runtime.huggingface.source import fetch
from echosight.engines.runtime.progress import follow_transformers, tell
from echosight.engines.tts.local import LocalTTS, pcm16, pieces
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_MODEL = "facebook/mms-tts-eng"
FILES = ("*.json", "*.safetensors", "*.txt")


class VitsVoiceModel:
    """The model, in the thread that owns it. A voice is a speaker's number, where the model has several."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._pace: float = model.speaking_rate
        self.rate: int = model.config.sampling_rate
        speakers: int = model.config.num_speakers
        self.voices = tuple(map(str, range(speakers))) if speakers > 1 else ()

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The whole sentence is computed in the first step: VITS knows no beginning without its end."""
        import torch

        read = self._tokenizer(text, return_tensors="pt").to(self._model.device)
        if not read["input_ids"].shape[1]:
            # There is no letter in it that the model knows.
            return
        self._model.speaking_rate = self._pace * options.speed
        speaker = int(options.voice) if options.voice and options.voice in self.voices else 0
        with torch.inference_mode():
            made = self._model(**read, speaker_id=speaker if self.voices else None)
        yield from pieces(text, pcm16(made.waveform.float().cpu().numpy()), self.rate)


def voice(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: a Hugging Face id or a folder. Raises `SetupError`."""
    source = argument or DEFAULT_MODEL
    require_extra("A VITS voice", "torch", "transformers", extra="local", flag=f"--tts vits:{source}")
    return LocalTTS(f"vits {Path(source).name}", lambda: read_speaker(source, settings.device), 16_000)


def read_speaker(source: str, device: str = "auto") -> VitsVoiceModel:
    """The voice at `source`, downloaded where it is an id. Raises `SetupError`."""
    tell("libraries")
    import transformers as installed

    transformers: Any = installed
    device = choose_device(device)
    folder = fetch(source, FILES, flag="--tts vits:")
    tell("weights")
    follow_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type != "vits":
            raise SetupError(f"{source} is a model of type {config.model_type!r}, and this voice needs vits")
        model = transformers.VitsModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SetupError(f"{source} could not be loaded: {str(error).splitlines()[0]}") from error
    return VitsVoiceModel(model.to(device), tokenizer)
