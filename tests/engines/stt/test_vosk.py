"""Vosk as a transcriber: its bookkeeping, on a recogniser with the methods of Vosk's and their answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from echosight.engines.stt.vosk import VoskSTT, transcriber
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word
from echosight.settings import Settings

TENTH = INPUT_SAMPLE_RATE // 5
"""Bytes of a tenth of a second."""


class Recognizer:
    """Hears a word in each tenth of a second, named by its samples; a tenth of zeros ends a stretch."""

    def __init__(self) -> None:
        self._rest = b""
        self._heard = 0
        self._open: list[tuple[float, str]] = []

    def AcceptWaveform(self, data: bytes) -> int:
        assert isinstance(data, bytes)
        self._rest += data
        while len(self._rest) >= TENTH:
            word, self._rest = self._rest[0], self._rest[TENTH:]
            if word == 255:
                raise Exception("Failed to process waveform")
            at, self._heard = self._heard / 10, self._heard + 1
            if word == 0 and self._open:
                return 1
            if word:
                self._open.append((at, f"w{word}"))
        return 0

    def PartialResult(self) -> str:
        return json.dumps({"partial": " ".join(word for _, word in self._open)})

    def Result(self) -> str:
        heard = [{"word": word, "start": at, "end": at + 0.1, "conf": 1.0} for at, word in self._open]
        self._open = []
        # Of silence there is no list of words.
        return json.dumps({"result": heard, "text": ""} if heard else {"text": ""})

    FinalResult = Result


def words(*numbers: int) -> bytes:
    return b"".join(bytes([number]) * TENTH for number in numbers)


@pytest.fixture
async def vosk() -> AsyncIterator[VoskSTT]:
    made = VoskSTT("vosk", lambda: Recognizer)
    await made.start()
    yield made
    await made.close()


async def test_text_grows_while_the_user_speaks(vosk: VoskSTT) -> None:
    assert await vosk.hear("a", words(1)) == "w1"
    assert await vosk.hear("a", b"") is None
    assert await vosk.hear("a", words(2, 0, 3)) == "w1 w2 w3"
    expected = Transcript("w1 w2 w3", (Word(0, 2), Word(100, 5), Word(300, 8)))
    assert await vosk.finish("a") == expected
    assert await vosk.finish("a") == expected


async def test_it_goes_on_after_an_early_finish(vosk: VoskSTT) -> None:
    await vosk.hear("a", words(1))
    assert (await vosk.finish("a")).text == "w1"
    assert await vosk.hear("a", words(2)) == "w1 w2"
    assert await vosk.finish("a") == Transcript("w1 w2", (Word(0, 2), Word(100, 5)))


async def test_silence_is_no_text(vosk: VoskSTT) -> None:
    assert await vosk.hear("a", words(0, 0)) is None
    assert await vosk.finish("a") == Transcript("")


async def test_utterances_do_not_mix(vosk: VoskSTT) -> None:
    for number in (1, 2, 3):
        await vosk.hear("a", words(number))
        await vosk.hear("b", words(number + 10))
    assert (await vosk.finish("a")).text == "w1 w2 w3"
    assert (await vosk.finish("b")).text == "w11 w12 w13"
    await vosk.forget("a")
    with pytest.raises(EngineFailure):
        await vosk.finish("a")


async def test_what_breaks_is_a_failure(vosk: VoskSTT) -> None:
    with pytest.raises(EngineFailure, match="process waveform"):
        await vosk.hear("a", words(255))


async def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vosk")
    for named in ("", str(tmp_path / "nowhere")):
        with pytest.raises(SetupError, match="no folder of a Vosk model"):
            transcriber(None, Settings(vosk_model_path=named))
    with pytest.raises(SetupError, match="no model that Vosk can read"):
        await transcriber(str(tmp_path), Settings()).start()
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra vosk"):
        transcriber(None, Settings())
