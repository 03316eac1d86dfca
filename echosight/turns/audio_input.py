"""A session's audio input: resampling, windows of 32 ms for the VAD, and the audio that may still belong to a turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from echosight.audio.resampling import Resampler
from echosight.audio.silero import WINDOW
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.options import TurnDetectionOptions
from echosight.turns.detector import TurnDetector, TurnSignal
from echosight.turns.end_of_turn import is_end_of_turn
from echosight.turns.vad import WINDOW_BYTES, VadStream

_SAMPLES_PER_MS = INPUT_SAMPLE_RATE // 1000


class AudioInput:
    """Resamples audio, cuts it into windows, asks the VAD, and buffers what may belong to a turn.

    While nobody speaks the buffer is the pre-roll. While the user pauses it is the silence, which joins the turn only
    if speech goes on.
    """

    def __init__(self, vad: VadStream, options: TurnDetectionOptions) -> None:
        self._vad = vad
        self._detector = TurnDetector(options)
        self._options = options
        self._resampler: Resampler | None = None
        self._rate = 0
        self._partial_window = bytearray()
        self._buffer: deque[bytes] = deque()

    @property
    def position(self) -> int:
        """Samples processed so far, at `INPUT_SAMPLE_RATE`."""
        return self._detector.position

    @property
    def speaking(self) -> bool:
        """Whether a turn is going on, pauses included."""
        return self._detector.speaking

    @property
    def options(self) -> TurnDetectionOptions:
        return self._options

    @options.setter
    def options(self, options: TurnDetectionOptions) -> None:
        self._options = self._detector.options = options

    def update_endpointing(self, text: str) -> None:
        """Choose how much silence ends the turn, by the text that the user has said before this pause."""
        options = self._options
        if options.max_endpointing_delay_ms and not is_end_of_turn(text):
            options = replace(options, min_endpointing_delay_ms=options.max_endpointing_delay_ms)
        self._detector.options = options

    def resample(self, chunk: AudioChunk) -> bytes:
        """The chunk as PCM16 at `INPUT_SAMPLE_RATE`. A new rate starts a new resampler, behind the old one's tail."""
        if self._resampler is None or chunk.rate != self._rate:
            tail = self._resampler.push(b"", last=True) if self._resampler else b""
            self._resampler, self._rate = Resampler(chunk.rate, INPUT_SAMPLE_RATE, causal=True), chunk.rate
            return tail + self._resampler.push(chunk.pcm)
        return self._resampler.push(chunk.pcm)

    def windows(self, pcm: bytes) -> Iterator[bytes]:
        """The whole windows that are complete with `pcm`; the samples behind them wait for more."""
        self._partial_window += pcm
        while len(self._partial_window) >= WINDOW_BYTES:
            window = bytes(self._partial_window[:WINDOW_BYTES])
            del self._partial_window[:WINDOW_BYTES]
            yield window

    async def process_window(self, window: bytes) -> tuple[float, tuple[TurnSignal, ...]]:
        """The probability of speech in the window, and the signals that it causes. The window is buffered."""
        self._buffer.append(window)
        probability = await self._vad.probability(window)
        signals = self._detector.push(probability)
        if not self._detector.speaking:
            pre_roll_ms = self.options.prefix_padding_ms + self.options.min_speech_ms
            while len(self._buffer) * WINDOW > pre_roll_ms * _SAMPLES_PER_MS + 2 * WINDOW:
                self._buffer.popleft()
        return probability, signals

    def take_buffered(self, since: int | None = None) -> bytes:
        """Empty the buffer; returns its audio, from sample `since` on."""
        pcm = b"".join(self._buffer)
        self._buffer.clear()
        if since is not None:
            pcm = pcm[max(0, len(pcm) - 2 * max(0, self.position - since)) :]
        return pcm

    def flush(self) -> bytes:
        """Empty the buffer, samples short of a window included: the client commits the turn by hand."""
        pcm = self.take_buffered() + bytes(self._partial_window)
        self._partial_window.clear()
        return pcm

    def clear(self) -> None:
        """Drop the turn in progress and the buffer; the VAD goes on."""
        self._buffer.clear()
        self._partial_window.clear()
        self._detector.reset()
