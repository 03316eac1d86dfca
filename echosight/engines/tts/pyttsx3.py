"""The operating system's own voices, by pyttsx3: SAPI on Windows, NSSpeechSynthesizer on macOS, espeak elsewhere."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Generator
from pathlib import Path
from typing import Any

from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.source import first_line
from echosight.engines.tts.local import LocalTTS, split_into_chunks
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

WORDS_PER_MINUTE = 180


class SystemVoiceModel:
    """A `LocalModel` on pyttsx3's engine. A voice is the system's id of it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._default = engine.getProperty("voice")
        voices = engine.getProperty("voices")
        self._by_language = {_language(voice): str(voice.id) for voice in reversed(voices)}
        self.voices = tuple(str(voice.id) for voice in voices)
        self.rate, _ = self._synthesize_file("a")

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The first step computes the whole sentence: pyttsx3 only writes files."""
        language = (options.language or "").lower().partition("-")[0]
        voice = options.voice if options.voice in self.voices else self._by_language.get(language, self._default)
        self._engine.setProperty("voice", voice)
        self._engine.setProperty("rate", round(WORDS_PER_MINUTE * options.speed))
        rate, pcm = self._synthesize_file(text)
        if rate != self.rate:
            raise RuntimeError(f"the voice {voice} speaks at {rate} Hz, and the one before at {self.rate} Hz")
        yield from split_into_chunks(text, pcm, rate)

    def _synthesize_file(self, text: str) -> tuple[int, bytes]:
        """Hz and PCM16. The file is deleted when it returns."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            self._engine.save_to_file(text, str(file))
            self._engine.runAndWait()
            try:
                with wave.open(str(file)) as speech:
                    if (speech.getnchannels(), speech.getsampwidth()) != (1, 2):
                        raise RuntimeError("the system's speech is not mono with 16 bits")
                    return speech.getframerate(), speech.readframes(speech.getnframes())
            except (OSError, EOFError, wave.Error) as error:
                raise RuntimeError(f"the system's voice wrote no WAV file: {error}") from error


def make_tts(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: one of pyttsx3's drivers (sapi5, nsss, espeak…), by default the system's. Raises `SetupError`."""
    require_extra("A system voice", "pyttsx3", extra="pyttsx3", flag="--tts pyttsx3")
    return LocalTTS("pyttsx3", lambda: load_model(argument), 22_050)


def load_model(driver: str | None = None) -> SystemVoiceModel:
    """Raises `SetupError`."""
    import pyttsx3

    try:
        return SystemVoiceModel(pyttsx3.init(driver))
    except Exception as error:  # each driver raises its own types
        raise SetupError(
            f"pyttsx3 finds no voice of the system ({first_line(error)}): on Debian, sudo apt install espeak-ng"
        ) from error


def _language(voice: Any) -> str:
    """The primary language subtag of a voice, such as ``de``."""
    first = next(iter(getattr(voice, "languages", None) or ()), "")
    # espeak's driver gives bytes with a priority in front.
    name = first.decode(errors="ignore") if isinstance(first, bytes) else str(first)
    return "".join(c for c in name.lower() if c.isalpha() or c in "-_").replace("_", "-").partition("-")[0]
