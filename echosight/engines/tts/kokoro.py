"""Kokoro as a voice, by kokoro-onnx. Its two files come from the user."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.tts.local import LocalTTS, pcm16, pieces
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
"""What the first letter of a voice's name stands for."""


class KokoroModel:
    """The model, in the thread that owns it. `preferred` speaks where the options name no voice."""

    rate = 24_000

    def __init__(self, model: Any, preferred: str = DEFAULT_VOICE) -> None:
        self._model = model
        names = sorted(model.voices.files if hasattr(model.voices, "files") else model.voices)
        if not names:
            raise SetupError("Kokoro's file of voices holds none")
        first = preferred if preferred in names else names[0]
        self.voices: tuple[str, ...] = (first, *(name for name in names if name != first))

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The whole sentence is computed in the first step."""
        name = self._voice(options)
        speed = min(max(options.speed, 0.5), 2.0)
        try:
            wave, rate, timings = self._model.create_timed(text, name, speed, LANGUAGES.get(name[0], "en-us"))
        except ValueError:
            # Nothing in it is spoken: no phoneme of it is in the vocabulary.
            return
        words = word_times(text, [(timing.phoneme, timing.start) for timing in timings])
        yield from pieces(text, pcm16(wave), rate, words)

    def _voice(self, options: GenerateOptions) -> str:
        """The one asked for, else the preferred one, if it speaks the language, else one that does."""
        if options.voice is not None and options.voice in self.voices:
            return options.voice
        wanted = (options.language or "").lower().partition("-")[0]
        spoken = [v for v in self.voices if wanted and LANGUAGES.get(v[0], "").partition("-")[0] == wanted]
        return self.voices[0] if not spoken or self.voices[0] in spoken else spoken[0]


def word_times(text: str, phonemes: Sequence[tuple[str, float]]) -> tuple[Word, ...]:
    """When words begin, by the (phoneme, seconds) that they were spoken as; none where the two do not match."""
    begins: list[float] = []
    blank = True
    for phoneme, seconds in phonemes:
        if phoneme.isspace():
            blank = True
        elif blank and phoneme.isalpha():
            begins.append(seconds)
            blank = False
    written = [word for word in re.finditer(r"\S+", text) if any(c.isalnum() for c in word[0])]
    if len(begins) != len(written):
        return ()
    return tuple(Word(round(1000 * at), word.end()) for at, word in zip(begins, written, strict=True))


def voice(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: the folder of Kokoro's two files. Raises `SetupError`."""
    require_extra("Kokoro", "kokoro_onnx", extra="kokoro", flag="--tts kokoro")
    model, voices = find_files([argument] if argument else FOLDERS)
    preferred = settings.kokoro_voice or settings.voice or DEFAULT_VOICE
    return LocalTTS("kokoro", lambda: read_speaker(model, voices, preferred), KokoroModel.rate)


def find_files(folders: Sequence[str]) -> tuple[Path, Path]:
    """The model and the voices. Raises `SetupError`."""
    for name in folders:
        folder = Path(name).expanduser()
        model, voices = sorted(folder.glob("kokoro*.onnx")), sorted(folder.glob("voices*.bin"))
        if model and voices:
            return model[0], voices[0]
    raise SetupError(
        f"Kokoro needs kokoro-v1.0.onnx and voices-v1.0.bin, from the releases of thewh1teagle/kokoro-onnx on GitHub, "
        f"in {' or '.join(folders)}; another folder is --tts kokoro:DIR"
    )


def read_speaker(model: Path, voices: Path, preferred: str) -> KokoroModel:
    """Raises `SetupError`."""
    from kokoro_onnx import Kokoro

    try:
        return KokoroModel(Kokoro(str(model), str(voices)), preferred)
    except SetupError:
        raise
    except Exception as error:  # ONNX Runtime and NumPy raise what they like for a broken file
        raise SetupError(f"Kokoro could not be loaded from {model.parent}: {str(error).splitlines()[0]}") from error
