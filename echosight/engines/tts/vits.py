"""VITS voices of the Hugging Face hub by transformers; also MMS-TTS, for over a thousand languages."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from echosight.audio.pcm import float_to_pcm
from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.device import choose_device
from echosight.engines.runtime.huggingface.source import fetch, first_line
from echosight.engines.runtime.progress import hook_transformers_progress, report
from echosight.engines.tts.local import LocalTTS, split_into_chunks
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_MODEL = "facebook/mms-tts-eng"
FILES = ("*.json", "*.safetensors", "*.txt")


class VitsModel:
    """A `LocalModel`. A voice is a speaker's number, where the model has several."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._speaking_rate: float = model.speaking_rate
        self.rate: int = model.config.sampling_rate
        speakers: int = model.config.num_speakers
        self.voices = tuple(map(str, range(speakers))) if speakers > 1 else ()

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The first step computes the whole sentence: VITS has no shorter unit."""
        import torch

        tokens = self._tokenizer(text, return_tensors="pt").to(self._model.device)
        if not tokens["input_ids"].shape[1]:
            # No letter of the text is in the model's vocabulary.
            return
        self._model.speaking_rate = self._speaking_rate * options.speed
        speaker = int(options.voice) if options.voice and options.voice in self.voices else 0
        with torch.inference_mode():
            output = self._model(**tokens, speaker_id=speaker if self.voices else None)
        yield from split_into_chunks(text, float_to_pcm(output.waveform.float().cpu().numpy()), self.rate)


def make_tts(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: a Hugging Face id or a folder. Raises `SetupError`."""
    source = argument or DEFAULT_MODEL
    require_extra("A VITS voice", "torch", "transformers", extra="local", flag=f"--tts vits:{source}")
    return LocalTTS(f"vits {Path(source).name}", lambda: load_model(source, settings.device), 16_000)


def load_model(source: str, device: str = "auto") -> VitsModel:
    """The model at `source`, downloaded where it is an id. Raises `SetupError`."""
    report("libraries")
    import transformers as untyped

    transformers: Any = untyped
    device = choose_device(device)
    folder = fetch(source, FILES, flag="--tts vits:")
    report("weights")
    hook_transformers_progress()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type != "vits":
            raise SetupError(f"{source} is a model of type {config.model_type!r}; --tts vits needs type 'vits'")
        model = transformers.VitsModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SetupError(f"{source} could not be loaded: {first_line(error)}") from error
    return VitsModel(model.to(device), tokenizer)
