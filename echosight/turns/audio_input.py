"""How a session hears: any audio in, windows of speech probability and turn signals out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from echosight.audio.resampling import Resampler
from echosight.audio.silero import WINDOW
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import TurnDetectionOptions
from echosight.turns.detector import Signal, TurnDetector
from echosight.turns.end_of_turn import is_end_of_turn
from echosight.turns.vad import WINDOW_BYTES, VadStream

_PER_MS = INPUT_SAMPLE_RATE // 1000


class AudioInput:
    """Resamples, cuts into windows of 32 ms, asks the VAD, and holds what may still belong to a turn.

    While nobody speaks it holds the pre-roll. While somebody pauses it holds the silence, which joins
    the turn only if speech goes on.
    """

    def __init__(self, voice: VadStream, options: TurnDetectionOptions) -> None:
        self._voice = voice
        self._detector = TurnDetector(options)
        self._options = options
        self._resampler: Resampler | None = None
        self._rate = 0
        self._loose = bytearray()
        self._held: deque[bytes] = deque()

    @property
    def position(self) -> int:
        """Samples judged so far, at `INPUT_SAMPLE_RATE`."""
        return self._detector.position

    @property
    def speaking(self) -> bool:
        return self._detector.speaking

    @property
    def options(self) -> TurnDetectionOptions:
        return self._options

    @options.setter
    def options(self, options: TurnDetectionOptions) -> None:
        self._options = self._detector.options = options

    def consider(self, text: str) -> None:
        """What the speaker has said before this pause decides how much silence ends the turn."""
        options = self._options
        if options.max_endpointing_delay_ms and not is_end_of_turn(text):
            options = replace(options, min_endpointing_delay_ms=options.max_endpointing_delay_ms)
        self._detector.options = options

    def resample(self, chunk: AudioChunk) -> bytes:
        """The chunk at `INPUT_SAMPLE_RATE`. A new rate starts a new stream; the old one's last samples come first."""
        if self._resampler is None or chunk.rate != self._rate:
            tail = self._resampler.push(b"", last=True) if self._resampler else b""
            self._resampler, self._rate = Resampler(chunk.rate, INPUT_SAMPLE_RATE, causal=True), chunk.rate
            return tail + self._resampler.push(chunk.pcm)
        return self._resampler.push(chunk.pcm)

    def windows(self, pcm: bytes) -> Iterator[bytes]:
        """The whole windows that are ready, `pcm` included; the rest waits."""
        self._loose += pcm
        while len(self._loose) >= WINDOW_BYTES:
            window = bytes(self._loose[:WINDOW_BYTES])
            del self._loose[:WINDOW_BYTES]
            yield window

    async def judge(self, window: bytes) -> tuple[float, tuple[Signal, ...]]:
        """Probability of speech in the window, and what it changes. The window is held until `take`n."""
        self._held.append(window)
        probability = await self._voice.probability(window)
        signals = self._detector.push(probability)
        if not self._detector.speaking:
            keep = self.options.prefix_padding_ms + self.options.min_speech_ms
            while len(self._held) * WINDOW > keep * _PER_MS + 2 * WINDOW:
                self._held.popleft()
        return probability, signals

    def take(self, since: int | None = None) -> bytes:
        """The held audio, from sample `since` on; it is held no longer."""
        pcm = b"".join(self._held)
        self._held.clear()
        if since is not None:
            pcm = pcm[max(0, len(pcm) - 2 * max(0, self.position - since)) :]
        return pcm

    def rest(self) -> bytes:
        """The held audio and the samples short of a window: the turn is committed by hand."""
        pcm = self.take() + bytes(self._loose)
        self._loose.clear()
        return pcm

    def forget(self) -> None:
        """The turn in progress is dropped; listening goes on."""
        self._held.clear()
        self._loose.clear()
        self._detector.reset()
