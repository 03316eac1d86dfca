"""How the recogniser's process shares its decoders, on decoders that recognise nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from echosight.engines.runtime.ipc import FrameType, IpcFrame
from echosight.engines.stt import sphinx_process
from echosight.engines.stt.sphinx_process import MAX_UTTERANCE_S, STEP_BYTES, Recogniser

SECOND = 32_000


class SilentDecoder:
    """Has the methods of pocketsphinx's. `ended` are the bytes of each utterance."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self._bytes = 0

    def reinit_feat(self) -> None: ...

    def set_cmn(self, cmn: str) -> None: ...

    def get_cmn(self, update: bool) -> str:
        return ""

    def start_utt(self) -> None:
        self._bytes = 0

    def process_raw(self, pcm: bytes, no_search: bool, full_utt: bool) -> None:
        self._bytes += len(pcm)

    def end_utt(self) -> None:
        self.ended.append(self._bytes)

    def hyp(self) -> None: ...


class EndOfInput(Exception):
    """The test's frames are used up."""


class Pipe:
    """Gives the frames, and raises `EndOfInput` when all have been processed."""

    def __init__(self, *frames: IpcFrame) -> None:
        self.frames = list(frames)
        self.sent: list[tuple[FrameType, bytes]] = []

    def receive(self, wait_s: float | None = 0) -> Iterator[IpcFrame]:
        frames, self.frames = self.frames, []
        if not frames and wait_s is None:
            raise EndOfInput
        yield from frames

    def send(self, kind: FrameType, channel: int, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))


def test_a_long_utterance_changes_its_decoder_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = SilentDecoder()
    monkeypatch.setattr(sphinx_process, "_create_decoder", lambda: decoder)
    begin = IpcFrame(FrameType.BEGIN, 1, json.dumps({"speaker": "me"}).encode())
    audio = IpcFrame(FrameType.AUDIO, 1, bytes((2 * MAX_UTTERANCE_S + 10) * SECOND))
    pipe: Any = Pipe(begin, audio, IpcFrame(FrameType.FINISH, 1, b"0"))
    with pytest.raises(EndOfInput):
        Recogniser(pipe, max_decoders=1).run()
    minute = MAX_UTTERANCE_S * SECOND
    assert [minute <= size < minute + STEP_BYTES for size in decoder.ended] == [True, True]
    assert pipe.sent[-1][0] is FrameType.FINAL or pipe.sent[-2][0] is FrameType.FINAL
