"""Kokoro as a TTS, by kokoro-onnx. The user provides its two files."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from echosight.audio.pcm import float_to_pcm
from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.source import first_line
from echosight.engines.tts.local import LocalTTS, split_into_chunks
from echosight.engines.tts.word_timing import spoken_words
from echosight.errors import SetupError
from echosight.media import Word
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_VOICE = "af_heart"
FOLDERS = ("~/.cache/kokoro", "models/kokoro")
LANGUAGES = {
    "a": "en-us",
    "b": "en-gb",
    "e": "es",
    "f": "fr-fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt-br",
    "z": "cmn",
}
"""First letter of a voice's name -> the language that it speaks."""


class KokoroModel:
    """A `LocalModel`. `default_voice` speaks where the options name no voice."""

    rate = 24_000

    def __init__(self, model: Any, default_voice: str = DEFAULT_VOICE) -> None:
        self._model = model
        names = sorted(model.voices.files if hasattr(model.voices, "files") else model.voices)
        if not names:
            raise SetupError("Kokoro's file of voices is empty")
        first = default_voice if default_voice in names else names[0]
        self.voices: tuple[str, ...] = (first, *(name for name in names if name != first))

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The first step computes the whole sentence."""
        voice = self.choose_voice(options)
        speed = min(max(options.speed, 0.5), 2.0)
        try:
            wave, rate, timings = self._model.create_timed(text, voice, speed, LANGUAGES.get(voice[0], "en-us"))
        except ValueError:
            # No phoneme of the text is in the vocabulary.
            return
        words = word_times(text, [(timing.phoneme, timing.start) for timing in timings])
        yield from split_into_chunks(text, float_to_pcm(wave), rate, words)

    def choose_voice(self, options: GenerateOptions) -> str:
        """The requested voice; else the default one where it speaks the language; else the first one that does."""
        if options.voice is not None and options.voice in self.voices:
            return options.voice
        language = (options.language or "").lower().partition("-")[0]
        matching = [v for v in self.voices if language and LANGUAGES.get(v[0], "").partition("-")[0] == language]
        return self.voices[0] if not matching or self.voices[0] in matching else matching[0]


def word_times(text: str, phonemes: Sequence[tuple[str, float]]) -> tuple[Word, ...]:
    """The words of `text`, timed by the (phoneme, seconds) that they are spoken as.

    None where the numbers of written and spoken words differ, as for "21".
    """
    starts: list[float] = []
    after_space = True
    for phoneme, seconds in phonemes:
        if phoneme.isspace():
            after_space = True
        elif after_space and phoneme.isalpha():
            starts.append(seconds)
            after_space = False
    written = spoken_words(text)
    if len(starts) != len(written):
        return ()
    return tuple(Word(round(1000 * seconds), word.end()) for seconds, word in zip(starts, written, strict=True))


def make_tts(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: the folder of Kokoro's two files. Raises `SetupError`."""
    require_extra("Kokoro", "kokoro_onnx", extra="kokoro", flag="--tts kokoro")
    model, voices = find_files([argument] if argument else FOLDERS)
    default_voice = settings.kokoro_voice or settings.voice or DEFAULT_VOICE
    return LocalTTS("kokoro", lambda: load_model(model, voices, default_voice), KokoroModel.rate)


def find_files(folders: Sequence[str]) -> tuple[Path, Path]:
    """The files of the model and of its voices. Raises `SetupError`."""
    for name in folders:
        folder = Path(name).expanduser()
        model, voices = sorted(folder.glob("kokoro*.onnx")), sorted(folder.glob("voices*.bin"))
        if model and voices:
            return model[0], voices[0]
    raise SetupError(
        f"Kokoro needs kokoro-v1.0.onnx and voices-v1.0.bin, from the releases of thewh1teagle/kokoro-onnx on GitHub, "
        f"in {' or '.join(folders)}; for another folder use --tts kokoro:DIR"
    )


def load_model(model: Path, voices: Path, default_voice: str) -> KokoroModel:
    """Raises `SetupError`."""
    from kokoro_onnx import Kokoro

    try:
        return KokoroModel(Kokoro(str(model), str(voices)), default_voice)
    except SetupError:
        raise
    except Exception as error:  # ONNX Runtime and NumPy raise many types for a broken file
        raise SetupError(f"Kokoro could not be loaded from {model.parent}: {first_line(error)}") from error
