"""Deepgram's STT and TTS, on local servers that speak its protocols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from echosight.engines.runtime.http_client import PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.engines.stt.deepgram import DeepgramSTT, make_stt
from echosight.engines.tts.deepgram import make_tts
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.deepgram_service import Service, deepgram_service, results
from tests.engines.upstream import answer, body, upstream

PCM = bytes(3200)
SECOND = bytes(32_000)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with deepgram_service() as service:
        yield service


def settings_for(port: int) -> Settings:
    return Settings(deepgram_url=f"http://127.0.0.1:{port}", deepgram_api_key=SecretStr("sesame"))


@pytest.fixture
async def deepgram(service: Service) -> AsyncIterator[DeepgramSTT]:
    stt = make_stt(None, settings_for(service.port))
    await stt.start()
    service.paths.clear()
    service.keys.clear()
    yield stt
    await stt.close()


async def test_partial_texts_come_while_the_user_speaks_and_become_final(
    service: Service, deepgram: DeepgramSTT
) -> None:
    stream = deepgram.open("en")
    partial = None
    while partial is None:
        partial = await stream.push(PCM)
        await asyncio.sleep(0)
    assert partial == "so far"
    assert await stream.finalize() == Transcript("So good.", (Word(0, 2), Word(100, 8)))
    assert service.keys == ["Token sesame"]
    assert "language=en" in service.paths[0]
    assert "encoding=linear16&sample_rate=16000" in service.paths[0]
    await stream.push(PCM)
    assert (await stream.finalize()).text == "So good. So good."
    await stream.close()


async def test_all_audio_is_sent_again_where_the_connection_breaks(
    service: Service, deepgram: DeepgramSTT, pauses: list[float]
) -> None:
    service.cuts = 2
    stream = deepgram.open()
    await stream.push(PCM)
    await stream.push(PCM)
    assert (await stream.finalize()).text == "So good."
    assert service.heard == [2 * PCM] * 3
    assert pauses == [0.5, 0.5]


async def test_a_connection_that_breaks_three_times_is_a_failure(
    service: Service, deepgram: DeepgramSTT, pauses: list[float]
) -> None:
    service.cuts = 3
    stream = deepgram.open()
    await stream.push(PCM)
    with pytest.raises(TransientError, match="Deepgram broke off the connection: NET-0001"):
        await stream.finalize()


async def test_the_last_words_need_not_become_final(
    service: Service, deepgram: DeepgramSTT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.stt.deepgram.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("echosight.engines.stt.deepgram.FINAL_TIMEOUT_S", 0.2)
    service.silent_end = True
    stream = deepgram.open()
    await stream.push(PCM)
    assert (await stream.finalize()).text == "so far"


@pytest.mark.parametrize(("status", "failure"), [(401, PermanentError), (503, TransientError), (429, TransientError)])
async def test_a_refused_connection_is_a_failure(
    service: Service, deepgram: DeepgramSTT, pauses: list[float], status: int, failure: type[EngineFailure]
) -> None:
    service.status = status
    stream = deepgram.open()
    await stream.push(PCM)
    with pytest.raises(failure, match=str(status)):
        await stream.finalize()
    assert pauses == ([] if failure is PermanentError else [3, 3])


async def test_a_language_that_deepgram_refuses_is_replaced_by_detection(
    service: Service, deepgram: DeepgramSTT
) -> None:
    service.languages = ("en", "multi")
    for language, tried in (("en-XX", ["en-XX", "en"]), ("xx", ["xx", "multi"]), (None, ["multi"])):
        stream = deepgram.open(language)
        await stream.push(PCM)
        assert (await stream.finalize()).text == "So good."
        assert [path.partition("language=")[2] for path in service.paths] == tried
        service.paths.clear()
        await stream.close()


@pytest.mark.parametrize(
    "garbage",
    ['{"type": "Results"}', "[]", "{", results("so", 0, 1, final=False).replace('"start": 0.0', '"start": "soon"')],
)
async def test_a_message_that_is_no_transcript_is_a_failure(
    service: Service, deepgram: DeepgramSTT, garbage: str
) -> None:
    service.garbage = garbage
    stream = deepgram.open()
    for _ in range(3):
        await stream.push(PCM)
    with pytest.raises(EngineFailure, match="no transcript"):
        await stream.finalize()


async def test_where_no_server_listens_start_and_finalize_fail(pauses: list[float]) -> None:
    async with upstream() as gone:
        settings = settings_for(gone.port)
    stt = make_stt(None, settings)
    with pytest.raises(SetupError, match="cannot be reached"):
        await stt.start()
    stream = stt.open()
    await stream.push(PCM)
    with pytest.raises(TransientError, match="Deepgram cannot be reached"):
        await stream.finalize()
    await stt.close()


async def test_the_tts_streams_speech(pauses: list[float]) -> None:
    async with upstream() as server:
        server.on(
            "/v1/speak", answer({}, 405), answer({"err_msg": "later"}, 503), body(SECOND, kind="audio/l16;rate=24000")
        )
        tts = make_tts(None, settings_for(server.port))
        await tts.start()
        chunks = [chunk async for chunk in tts.synthesize("Hello.", GenerateOptions(voice="aura-2-apollo-en"))]
        await tts.close()
        assert b"".join(chunk.pcm for chunk in chunks) == SECOND
        request = server.requests[-1]
        assert request.json == {"text": "Hello."}
        assert request.query == "model=aura-2-apollo-en&encoding=linear16&sample_rate=24000&container=none"
        assert request.headers["authorization"] == "Token sesame"
    assert pauses == [0.5]


def test_a_key_is_needed() -> None:
    no_key: Any = {"deepgram_api_key": None}
    for create in (make_stt, make_tts):
        with pytest.raises(SetupError, match="set DEEPGRAM_API_KEY"):
            create(None, Settings(**no_key))
