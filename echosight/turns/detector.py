"""From speech probabilities of 32 ms windows to the beginning, pauses and end of the user's turn.

Time is counted in samples, never read off a clock, so a recording fed faster than real time gives the same signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from echosight.audio.silero import WINDOW
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import TurnDetectionOptions

_HYSTERESIS = 0.15
_MIN_THRESHOLD, _MAX_THRESHOLD = 0.05, 0.95


class VadSignal(Enum):
    """What a window brought about.

    START: a turn began. PAUSE: silence has lasted `speculation_delay_ms`; the turn may be over, or go on. RESUME: it
    goes on. END: it is over.
    """

    START = auto()
    PAUSE = auto()
    RESUME = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class TurnSignal:
    """A signal and its place in the stream, in samples.

    `sample` is for START the first sample of speech less the padding before it, for RESUME that of the window with
    which speech goes on, for PAUSE and END the end of the last window of speech. `forced`: END, because the turn
    reached `max_turn_ms`.
    """

    kind: VadSignal
    sample: int
    forced: bool = False


class TurnDetector:
    """Finds turns: (START (PAUSE RESUME)* PAUSE? END)*.

    Speech begins at `threshold` and ends 0.15 below it (at half of it, where that is higher); a pause is over at
    `threshold` again. Thresholds are limited to 0.05-0.95: clear speech stays above 0.995 for many windows but never
    reaches 1.0, and in silence Silero does not come down to 0.0, so beyond these limits a turn would never begin or
    never end.
    """

    def __init__(self, options: TurnDetectionOptions) -> None:
        self.options = options
        self.position = 0
        """Samples seen so far."""
        self._earliest = 0  # where the last turn ended: the next one's padding may not reach back beyond it
        self._candidate: int | None = None  # where speech began that is still shorter than min_speech_ms
        self._turn_start: int | None = None
        self._speech_end = 0
        self._paused = False

    @property
    def options(self) -> TurnDetectionOptions:
        """May be replaced at any time; the new ones count from the next window on."""
        return self._options

    @options.setter
    def options(self, options: TurnDetectionOptions) -> None:
        self._options = options
        self._threshold = min(max(options.threshold, _MIN_THRESHOLD), _MAX_THRESHOLD)
        self._release_threshold = max(self._threshold - _HYSTERESIS, self._threshold / 2)
        self._padding = _samples(options.prefix_padding_ms)
        self._min_speech = _samples(options.min_speech_ms)
        self._min_silence = _samples(options.min_endpointing_delay_ms)
        self._speculation_delay = _samples(options.speculation_delay_ms)
        self._max_turn = _samples(options.max_turn_ms)

    @property
    def speaking(self) -> bool:
        """Whether a turn is going on, pauses included."""
        return self._turn_start is not None

    def reset(self) -> None:
        """Forget the turn in progress; the next one begins after this point."""
        self._end_turn(self.position)

    def push(self, probability: float) -> tuple[TurnSignal, ...]:
        """Take in the next window of 512 samples; returns the signals that it caused."""
        start = self.position
        self.position += WINDOW
        if self._turn_start is None:
            return self._await_speech(probability, start)
        return self._await_silence(probability, start, self._turn_start)

    def _await_speech(self, probability: float, start: int) -> tuple[TurnSignal, ...]:
        if probability < self._threshold:
            self._candidate = None
            return ()
        if self._candidate is None:
            self._candidate = start
        if self.position - self._candidate < self._min_speech:
            return ()
        self._turn_start = max(self._candidate - self._padding, self._earliest)
        self._speech_end = self.position
        return (TurnSignal(VadSignal.START, self._turn_start),)

    def _await_silence(self, probability: float, start: int, turn_start: int) -> tuple[TurnSignal, ...]:
        signals: tuple[TurnSignal, ...] = ()
        in_silence = self._speech_end < start
        if probability >= (self._threshold if in_silence else self._release_threshold):
            self._speech_end = self.position
            if self._paused:
                self._paused = False
                signals = (TurnSignal(VadSignal.RESUME, start),)
        silence = self.position - self._speech_end
        if silence and silence >= self._min_silence:
            return (*signals, self._end_turn(self._speech_end))
        if self.position - turn_start >= self._max_turn:
            return (*signals, self._end_turn(self._speech_end, forced=True))
        if silence and silence >= self._speculation_delay and not self._paused:
            self._paused = True
            signals = (TurnSignal(VadSignal.PAUSE, self._speech_end),)
        return signals

    def _end_turn(self, sample: int, forced: bool = False) -> TurnSignal:
        self._earliest = sample
        self._candidate = self._turn_start = None
        self._paused = False
        return TurnSignal(VadSignal.END, sample, forced)


def _samples(ms: int) -> int:
    return ms * INPUT_SAMPLE_RATE // 1000
