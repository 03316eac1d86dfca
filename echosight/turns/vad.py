"""Voice activity: one Silero model for all sessions, run in batches of the windows that are ready."""

from __future__ import annotations

import asyncio

import numpy as np

from echosight.audio.silero import WINDOW, SileroVADModel, VadState
from echosight.audio.speech_spans import default_model

WINDOW_BYTES = 2 * WINDOW


class BatchedVad:
    """One Silero model for every session on the event loop.

    Windows that become ready in the same pass of the loop go through it in one batch; nothing waits for more to come.
    """

    def __init__(self, model: SileroVADModel | None = None) -> None:
        self._model = model or default_model()
        self._waiting: list[_Request] = []

    def stream(self) -> VadStream:
        """A new stream of audio, silent so far."""
        return VadStream(self, self._model.stream())

    def submit(self, state: VadState, window: bytes) -> asyncio.Future[float]:
        """Queue a window for the batch that runs once everything now ready has had its say."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((state, window, answer))
        return answer

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            batch: dict[VadState, _Request] = {}
            later: list[_Request] = []
            for request in waiting:  # a stream's windows go one after the other
                if batch.setdefault(request[0], request) is not request:
                    later.append(request)
            self._answer(list(batch.values()))
            waiting = later

    def _answer(self, batch: list[_Request]) -> None:
        states, windows, answers = zip(*batch, strict=True)
        try:
            # A window whose caller has gone was heard all the same: the stream's next one builds on it.
            samples = np.frombuffer(b"".join(windows), "<i2").reshape(-1, WINDOW)
            found = self._model.probabilities(samples, states).tolist()
        except Exception as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            return
        for answer, probability in zip(answers, found, strict=True):
            if not answer.done():
                answer.set_result(probability)


_Request = tuple[VadState, bytes, "asyncio.Future[float]"]


class VadStream:
    """The speech probabilities of one stream, each window building on those before it."""

    __slots__ = ("_activity", "_state")

    def __init__(self, activity: BatchedVad, state: VadState) -> None:
        self._activity = activity
        self._state = state

    def probability(self, window: bytes) -> asyncio.Future[float]:
        """How likely the next 512 samples (PCM16 at 16 kHz, 1024 bytes) are speech: an awaitable float, 0-1.

        Windows count in the order of the calls, whether or not they are awaited. Raises ValueError at once if the
        window has another length.
        """
        if len(window) != WINDOW_BYTES:
            raise ValueError(f"expected {WINDOW_BYTES} bytes of PCM16, got {len(window)}")
        return self._activity.submit(self._state, window)
