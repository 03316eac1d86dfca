"""The values that all modules share: audio, images, timed words, transcripts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INPUT_SAMPLE_RATE", "AudioChunk", "ImageFrame", "Transcript", "Word", "pcm_ms"]

INPUT_SAMPLE_RATE = 16_000
"""Hz of the audio that sessions process: Silero and all speech models here expect it."""


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
    """An encoded image (JPEG, PNG or WebP), unchanged since it arrived and checked to be decodable.

    `width` and `height` are in pixels; `media_type` is e.g. ``image/jpeg``.
    """

    data: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word that begins `start_ms` after the start of the audio and ends at `text_end` in its text.

    `text_end` counts characters and includes trailing punctuation, so that `text[:text_end]` is the text up to and
    including this word.
    """

    start_ms: int
    text_end: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of the user's speech, from an engine or an STT. `words` are timed from the first sample of the turn.

    `final` is False while the user may still continue. `provider` names the part of a fallback chain that produced it.
    """

    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None
    final: bool = True
    provider: str = ""
