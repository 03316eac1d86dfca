"""Whose turn it is: speech probabilities of 32 ms windows become turns, counted in samples, never read off a clock."""

from __future__ import annotations

from dataclasses import dataclass

from echosight.audio.silero import WINDOW
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import TurnDetectionOptions

_HYSTERESIS = 0.15
_LOWEST, _HIGHEST = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """A turn began at sample `at`: its first window of speech, less the padding before it."""

    at: int


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """Silence has lasted `pause_ms` since the speech ended at sample `at`; the turn may be over soon, or go on."""

    at: int


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The turn goes on after a pause, with the window that begins at sample `at`."""

    at: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The turn is over; its last window of speech ended at sample `at`. `forced`: it reached `max_turn_ms`."""

    at: int
    forced: bool = False


Signal = SpeechBegan | SpeechPaused | SpeechResumed | SpeechEnded


class TurnDetector:
    """Finds turns: (SpeechBegan (SpeechPaused SpeechResumed)* SpeechPaused? SpeechEnded)*.

    Speech begins at `threshold` and ends 0.15 below it (half of it, where that is more); a pause is over at `threshold`
    again. Thresholds count as 0.05 to 0.95: clear speech stays above 0.995 for many windows but never reaches 1.0, and
    in silence Silero does not come down to 0.0, so that beyond these a turn would never begin or never end.
    """

    def __init__(self, options: TurnDetectionOptions) -> None:
        self.options = options
        self.position = 0
        """Samples seen so far."""
        self._earliest = 0  # no turn may reach back beyond the end of the last one
        self._candidate: int | None = None  # where speech began that is still too short to count
        self._began: int | None = None
        self._speech_end = 0
        self._paused = False

    @property
    def options(self) -> TurnDetectionOptions:
        """May be replaced at any time, and then counts from the next window."""
        return self._options

    @options.setter
    def options(self, options: TurnDetectionOptions) -> None:
        self._options = options
        self._threshold = min(max(options.threshold, _LOWEST), _HIGHEST)
        self._release = max(self._threshold - _HYSTERESIS, self._threshold / 2)
        self._padding = _samples(options.prefix_padding_ms)
        self._min_speech = _samples(options.min_speech_ms)
        self._silence = _samples(options.min_endpointing_delay_ms)
        self._pause = _samples(options.speculation_delay_ms)
        self._max_turn = _samples(options.max_turn_ms)

    @property
    def speaking(self) -> bool:
        """Whether a turn is going on, pauses included."""
        return self._began is not None

    def reset(self) -> None:
        """Forget the turn in progress; the next one begins after this point."""
        self._close(self.position)

    def push(self, probability: float) -> tuple[Signal, ...]:
        """Take in the next window of 512 samples; returns what it brought about."""
        start = self.position
        self.position += WINDOW
        if self._began is None:
            return self._wait(probability, start)
        return self._follow(probability, start, self._began)

    def _wait(self, probability: float, start: int) -> tuple[Signal, ...]:
        if probability < self._threshold:
            self._candidate = None
            return ()
        if self._candidate is None:
            self._candidate = start
        if self.position - self._candidate < self._min_speech:
            return ()
        self._began = max(self._candidate - self._padding, self._earliest)
        self._speech_end = self.position
        return (SpeechBegan(self._began),)

    def _follow(self, probability: float, start: int, began: int) -> tuple[Signal, ...]:
        signals: tuple[Signal, ...] = ()
        in_silence = self._speech_end < start
        if probability >= (self._threshold if in_silence else self._release):
            self._speech_end = self.position
            if self._paused:
                self._paused = False
                signals = (SpeechResumed(start),)
        silence = self.position - self._speech_end
        if silence and silence >= self._silence:
            return (*signals, self._close(self._speech_end))
        if self.position - began >= self._max_turn:
            return (*signals, self._close(self._speech_end, forced=True))
        if silence and silence >= self._pause and not self._paused:
            self._paused = True
            signals = (SpeechPaused(self._speech_end),)
        return signals

    def _close(self, at: int, forced: bool = False) -> SpeechEnded:
        self._earliest = at
        self._candidate = self._began = None
        self._paused = False
        return SpeechEnded(at, forced)


def _samples(ms: int) -> int:
    return ms * INPUT_SAMPLE_RATE // 1000
