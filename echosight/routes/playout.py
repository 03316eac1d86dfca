"""What a call has to play: one answer after the other, in frames of 20 ms."""

from __future__ import annotations

from collections.abc import Callable

RATE = 48_000
FRAME_SAMPLES = RATE // 50
_FRAME_BYTES = 2 * FRAME_SAMPLES


class PlayoutBuffer:
    """Plays turns in the order in which they began to speak, each to its end.

    `tell` is called when a turn is ``started``, ``stopped`` or ``cleared``, and `played` with the ms of it that were
    played so far: 0 as soon as it waits.
    """

    def __init__(self, tell: Callable[[str, str], None], played: Callable[[str, float], None]) -> None:
        self._tell = tell
        self._played = played
        self._waiting: dict[str, bytearray] = {}
        self._ended: set[str] = set()
        self._silenced: set[str] = set()
        """Turns that were cleared and still go on being made."""
        self._playing: str | None = None
        self._played_bytes = 0

    def say(self, turn: str, pcm: bytes) -> None:
        """More speech of a turn, PCM16 at 48 kHz."""
        if turn in self._silenced:
            return
        if turn not in self._waiting:
            self._waiting[turn] = bytearray()
            self._played(turn, 0.0)
        self._waiting[turn] += pcm

    def end(self, turn: str) -> None:
        """No more comes of that turn."""
        self._silenced.discard(turn)
        if turn in self._waiting:
            self._ended.add(turn)

    def clear(self, turn: str | None = None) -> None:
        """Fall silent at once; with `turn`, only that one is not played any more."""
        for cleared in [*self._waiting] if turn is None else [turn] if turn in self._waiting else []:
            if cleared not in self._ended:
                self._silenced.add(cleared)
            self._forget(cleared)
            self._tell("cleared", cleared)

    def frame(self) -> bytes:
        """The next 20 ms; silence where there is nothing to play."""
        frame = bytearray()
        while len(frame) < _FRAME_BYTES and (turn := next(iter(self._waiting), None)) is not None:
            waiting = self._waiting[turn]
            if waiting and self._playing is None:
                self._playing = turn
                self._tell("started", turn)
            taken = waiting[: _FRAME_BYTES - len(frame)]
            del waiting[: len(taken)]
            frame += taken
            if taken:
                self._played_bytes += len(taken)
                self._played(turn, self._played_bytes * 500 / RATE)
            if waiting or turn not in self._ended:
                break  # what comes next is not there yet, and no other turn may cut in
            started = self._playing == turn
            self._forget(turn)
            if started:
                self._tell("stopped", turn)
        return bytes(frame.ljust(_FRAME_BYTES, b"\0"))

    def _forget(self, turn: str) -> None:
        del self._waiting[turn]
        self._ended.discard(turn)
        if turn == self._playing:
            self._playing, self._played_bytes = None, 0
