"""Compressed audio files (FLAC, Ogg Vorbis and Opus, MP3) and rarer WAV encodings, decoded by libsndfile."""

from __future__ import annotations

import io

from echosight.audio.pcm import downmix
from echosight.errors import InputError
from echosight.media import AudioChunk


def decode_file(data: bytes, max_seconds: float) -> AudioChunk:
    """A whole file as mono PCM16 at its own rate; libsndfile recognises the format by the content.

    At most one sample more than `max_seconds` is decoded, so that a small file cannot expand to hours of audio.
    Raises `InputError` ``invalid_audio`` if libsndfile cannot decode it.
    """
    # Imported here because it takes 30 ms and few clients send anything but WAV and PCM.
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            samples = file.read(int(max_seconds * rate) + 1, dtype="int16")
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise InputError("Unsupported or damaged audio file", code="invalid_audio") from error
    return AudioChunk(downmix(samples.reshape(-1), channels).tobytes(), rate)
