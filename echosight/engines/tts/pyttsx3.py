"""The operating system's own voices, by pyttsx3: SAPI on Windows, the speech of macOS, espeak elsewhere."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Generator
from pathlib import Path
from typing import Any

from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.tts.local import LocalTTS, pieces
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

WORDS_A_MINUTE = 180


class SystemVoiceModel:
    """pyttsx3's engine, in the thread that owns it. A voice is the system's name for it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._default = engine.getProperty("voice")
        found = engine.getProperty("voices")
        self._by_language = {_language(voice): str(voice.id) for voice in reversed(found)}
        self.voices = tuple(str(voice.id) for voice in found)
        self.rate, _ = self._say("a")

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """The whole sentence is computed in the first step: pyttsx3 gives files only."""
        language = (options.language or "").lower().partition("-")[0]
        voice = options.voice if options.voice in self.voices else self._by_language.get(language, self._default)
        self._engine.setProperty("voice", voice)
        self._engine.setProperty("rate", round(WORDS_A_MINUTE * options.speed))
        rate, pcm = self._say(text)
        if rate != self.rate:
            raise RuntimeError(f"the voice {voice} speaks at {rate} Hz, and the one before at {self.rate}")
        yield from pieces(text, pcm, rate)

    def _say(self, text: str) -> tuple[int, bytes]:
        """Hz and PCM16. The file is gone when it returns."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            self._engine.save_to_file(text, str(file))
            self._engine.runAndWait()
            try:
                with wave.open(str(file)) as spoken:
                    if (spoken.getnchannels(), spoken.getsampwidth()) != (1, 2):
                        raise RuntimeError("the system's speech is not mono with 16 bits")
                    return spoken.getframerate(), spoken.readframes(spoken.getnframes())
            except (OSError, EOFError, wave.Error) as error:
                raise RuntimeError(f"the system's voice wrote no WAV file: {error}") from error


def voice(argument: str | None, settings: Settings) -> LocalTTS:
    """`argument`: one of pyttsx3's drivers (sapi5, nsss, espeak…), by default the system's. Raises `SetupError`."""
    require_extra("A system voice", "pyttsx3", extra="pyttsx3", flag="--tts pyttsx3")
    return LocalTTS("pyttsx3", lambda: read_speaker(argument), 22_050)


def read_speaker(driver: str | None = None) -> SystemVoiceModel:
    """Raises `SetupError`."""
    import pyttsx3

    try:
        return SystemVoiceModel(pyttsx3.init(driver))
    except Exception as error:  # drivers raise what their system does
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetupError(
            f"pyttsx3 finds no voice of the system ({reason}): on Debian, sudo apt install espeak-ng"
        ) from error


def _language(voice: Any) -> str:
    first = next(iter(getattr(voice, "languages", None) or ()), "")
    name = first.decode(errors="ignore") if isinstance(first, bytes) else str(first)
    return "".join(c for c in name.lower() if c.isalpha() or c in "-_").replace("_", "-").partition("-")[0]
