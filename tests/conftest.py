"""What tests of all kinds share: real and synthetic speech."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from echosight.audio.formats import decode_audio
from echosight.media import AudioChunk

Flite = Callable[..., AudioChunk]


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """The folder of recordings with a manifest.json that ECHOSIGHT_SPEECH names."""
    folder = os.environ.get("ECHOSIGHT_SPEECH")
    if not folder:
        pytest.skip("ECHOSIGHT_SPEECH names no folder of recordings")
    return Path(folder)


@pytest.fixture(scope="session")
def flite(tmp_path_factory: pytest.TempPathFactory) -> Flite:
    """`flite(text, voice="rms")`: synthetic speech that recognisers understand, 16 kHz."""
    program = shutil.which("flite")
    if program is None:
        pytest.skip("flite is not installed")
    folder = tmp_path_factory.mktemp("flite")

    @cache
    def speak(text: str, voice: str = "rms") -> AudioChunk:
        path = folder / "speech.wav"
        subprocess.run([program, "-voice", voice, "-t", text, "-o", str(path)], check=True, timeout=60)
        return decode_audio(path.read_bytes())

    return speak
