"""Vosk as an STT: its bookkeeping, on a recogniser with the methods of Vosk's and their results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from echosight.engines.stt.vosk import VoskSTT, make_stt
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript, Word
from echosight.settings import Settings
from tests.engines.stt.vosk_stand_in import Recognizer, words


@pytest.fixture
async def vosk() -> AsyncIterator[VoskSTT]:
    stt = VoskSTT("vosk", lambda: Recognizer)
    await stt.start()
    yield stt
    await stt.close()


async def test_the_text_grows_while_the_user_speaks(vosk: VoskSTT) -> None:
    stream = vosk.open()
    assert await stream.push(words(1)) == "w1"
    assert await stream.push(b"") is None
    assert await stream.push(words(2, 0, 3)) == "w1 w2 w3"
    expected = Transcript("w1 w2 w3", (Word(0, 2), Word(100, 5), Word(300, 8)))
    assert await stream.finalize() == expected
    assert await stream.finalize() == expected


async def test_a_stream_goes_on_after_an_early_finalize(vosk: VoskSTT) -> None:
    stream = vosk.open()
    await stream.push(words(1))
    assert (await stream.finalize()).text == "w1"
    assert await stream.push(words(2)) == "w1 w2"
    assert await stream.finalize() == Transcript("w1 w2", (Word(0, 2), Word(100, 5)))


async def test_silence_has_no_text(vosk: VoskSTT) -> None:
    stream = vosk.open()
    assert await stream.push(words(0, 0)) is None
    assert await stream.finalize() == Transcript("")


async def test_streams_do_not_mix(vosk: VoskSTT) -> None:
    first, second = vosk.open(), vosk.open()
    for number in (1, 2, 3):
        await first.push(words(number))
        await second.push(words(number + 10))
    assert (await first.finalize()).text == "w1 w2 w3"
    assert (await second.finalize()).text == "w11 w12 w13"
    await first.close()
    with pytest.raises(EngineFailure):
        await first.finalize()


async def test_an_error_of_the_binding_is_an_engine_failure(vosk: VoskSTT) -> None:
    with pytest.raises(EngineFailure, match="process waveform"):
        await vosk.open().push(words(255))


async def test_a_missing_package_or_model_is_a_setup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vosk")
    for path, problem in (("", "Vosk needs a model: download"), (str(tmp_path / "nowhere"), "nowhere is not a folder")):
        with pytest.raises(SetupError, match=problem):
            make_stt(None, Settings(vosk_model_path=path))
    with pytest.raises(SetupError, match="cannot read a model"):
        await make_stt(str(tmp_path), Settings()).start()
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra vosk"):
        make_stt(None, Settings())
