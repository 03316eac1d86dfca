"""A recogniser with the methods of Vosk's and their results."""

from __future__ import annotations

import json

from echosight.media import INPUT_SAMPLE_RATE

TENTH = INPUT_SAMPLE_RATE // 5
"""Bytes of a tenth of a second."""


class Recognizer:
    """Recognises a word in each tenth of a second, named by its first byte; a tenth that begins with 0 ends a segment.

    It fails for a tenth of 255s.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._tenths = 0
        self._open: list[tuple[float, str]] = []

    def AcceptWaveform(self, data: bytes) -> int:
        assert isinstance(data, bytes)
        self._rest += data
        while len(self._rest) >= TENTH:
            tenth, self._rest = self._rest[:TENTH], self._rest[TENTH:]
            word = tenth[0]
            if tenth == b"\xff" * TENTH:
                raise Exception("Failed to process waveform")
            start, self._tenths = self._tenths / 10, self._tenths + 1
            if word == 0 and self._open:
                return 1
            if word:
                self._open.append((start, f"w{word}"))
        return 0

    def PartialResult(self) -> str:
        return json.dumps({"partial": " ".join(word for _, word in self._open)})

    def Result(self) -> str:
        found = [{"word": word, "start": start, "end": start + 0.1, "conf": 1.0} for start, word in self._open]
        self._open = []
        # For silence there is no list of words.
        return json.dumps({"result": found, "text": ""} if found else {"text": ""})

    FinalResult = Result


def words(*numbers: int) -> bytes:
    return b"".join(bytes([number]) * TENTH for number in numbers)
