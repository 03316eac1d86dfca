"""Audio, images, words and transcripts: the plain values that every floor shares."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INPUT_SAMPLE_RATE", "AudioChunk", "ImageFrame", "Transcript", "Word", "pcm_ms"]

INPUT_SAMPLE_RATE = 16_000
"""Rate of the user's audio inside the server, in Hz: Silero's, and that of every speech model served here."""


def pcm_ms(size: int, rate: int = INPUT_SAMPLE_RATE) -> int:
    """Milliseconds, rounded down, of `size` bytes of mono PCM16 at `rate` Hz."""
    return size * 500 // rate


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Mono 16-bit little-endian PCM at `rate` Hz."""

    pcm: bytes
    rate: int = INPUT_SAMPLE_RATE

    @property
    def samples(self) -> int:
        return len(self.pcm) // 2

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


@dataclass(frozen=True, slots=True)
class ImageFrame:
    """One still image, encoded as it came (JPEG, PNG or WebP) and checked to be decodable.

    `width` and `height` are in pixels; `media_type` is e.g. ``image/jpeg``.
    """

    data: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word: it begins `start_ms` into the audio, and with it `text[:text_end]` has begun.

    `text_end` counts characters of the text that the audio speaks, trailing punctuation included,
    so cutting at a word is slicing a string.
    """

    start_ms: int
    text_end: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """What an engine or an STT understood. `words` are timed in ms from the first sample of the speech.

    `final` is False while the user may still go on. `provider` is the STT that wrote it, where there are several.
    """

    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None
    final: bool = True
    provider: str = ""
