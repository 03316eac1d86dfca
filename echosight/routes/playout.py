"""The audio that a WebRTC call has to play: one response after the other, in frames of 20 ms."""

from __future__ import annotations

from collections.abc import Callable

SAMPLE_RATE = 48_000
FRAME_SAMPLES = SAMPLE_RATE // 50
_FRAME_BYTES = 2 * FRAME_SAMPLES


class PlayoutBuffer:
    """Plays responses in the order in which their speech began, each to its end.

    `on_state(state, response_id)` is called when the playing of a response has ``started``, ``stopped`` or was
    ``cleared``; `on_progress(response_id, ms)` with how much of it was played so far, from 0 when it is queued.
    """

    def __init__(self, on_state: Callable[[str, str], None], on_progress: Callable[[str, float], None]) -> None:
        self._on_state = on_state
        self._on_progress = on_progress
        self._queued: dict[str, bytearray] = {}
        self._finished: set[str] = set()
        self._muted: set[str] = set()
        """Responses that were cleared while they are still generated."""
        self._playing: str | None = None
        self._played_bytes = 0

    def push(self, response_id: str, pcm: bytes) -> None:
        """Append speech of a response, PCM16 at 48 kHz."""
        if response_id in self._muted:
            return
        if response_id not in self._queued:
            self._queued[response_id] = bytearray()
            self._on_progress(response_id, 0.0)
        self._queued[response_id] += pcm

    def finish(self, response_id: str) -> None:
        """All speech of the response was pushed."""
        self._muted.discard(response_id)
        if response_id in self._queued:
            self._finished.add(response_id)

    def clear(self, response_id: str | None = None) -> None:
        """Drop the speech of a response, or of all."""
        for cleared in [*self._queued] if response_id is None else [response_id] if response_id in self._queued else []:
            if cleared not in self._finished:
                self._muted.add(cleared)
            self._forget(cleared)
            self._on_state("cleared", cleared)

    def next_frame(self) -> bytes:
        """The next 20 ms; silence where there is nothing to play."""
        frame = bytearray()
        while len(frame) < _FRAME_BYTES and (response_id := next(iter(self._queued), None)) is not None:
            queued = self._queued[response_id]
            if queued and self._playing is None:
                self._playing = response_id
                self._on_state("started", response_id)
            taken = queued[: _FRAME_BYTES - len(frame)]
            del queued[: len(taken)]
            frame += taken
            if taken:
                self._played_bytes += len(taken)
                self._on_progress(response_id, self._played_bytes * 500 / SAMPLE_RATE)
            if queued or response_id not in self._finished:
                break  # its next speech is not there yet, and no other response may cut in
            was_playing = self._playing == response_id
            self._forget(response_id)
            if was_playing:
                self._on_state("stopped", response_id)
        return bytes(frame.ljust(_FRAME_BYTES, b"\0"))

    def _forget(self, response_id: str) -> None:
        del self._queued[response_id]
        self._finished.discard(response_id)
        if response_id == self._playing:
            self._playing, self._played_bytes = None, 0
