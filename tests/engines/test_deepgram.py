from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from echosight.engines.runtime.http_client import PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.engines.stt.deepgram import DeepgramSTT, transcriber
from echosight.engines.tts.deepgram import voice
from echosight.errors import EngineFailure, SetupError
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.upstream import answer, body, upstream

PCM = bytes(3200)
SECOND = bytes(32_000)


def results(text: str, start: float, duration: float, *, final: bool, flushed: bool = False) -> str:
    words = [
        {"word": word.strip(".").lower(), "punctuated_word": word, "start": start + n / 10, "end": start + n / 10 + 0.1}
        for n, word in enumerate(text.split())
    ]
    channel = {"alternatives": [{"transcript": text, "words": words}]}
    message = {"type": "Results", "is_final": final, "start": start, "duration": duration, "channel": channel}
    return json.dumps(message | ({"from_finalize": True} if flushed else {}))


class Service:
    """A WebSocket server that speaks as Deepgram does: a word for every second it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.status = 200
        self.cuts = 0
        self.silent_end = False
        self.garbage = ""
        self.port = 0

    async def talk(self, socket: ServerConnection) -> None:
        self.heard.append(b"")
        at = len(self.heard) - 1
        final = 0.0
        async for message in socket:
            seconds = len(self.heard[at]) / 32_000
            if isinstance(message, bytes):
                self.heard[at] += message
                seconds = len(self.heard[at]) / 32_000
                if self.garbage:
                    await socket.send(self.garbage)
                await socket.send('{"type": "SpeechStarted"}')
                await socket.send(results("so far", final, seconds - final, final=False))
            elif json.loads(message)["type"] == "Finalize":
                if self.cuts:
                    self.cuts -= 1
                    await socket.close(1011, "NET-0001")
                    return
                if not self.silent_end:
                    await socket.send(results("So good.", final, seconds - final, final=True, flushed=True))
                final = seconds

    def admit(self, socket: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        if self.status != 200:
            refusal = socket.respond(self.status, "no")
            refusal.headers["Retry-After"] = "3"
            return refusal
        return None


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    async with serve(made.talk, "127.0.0.1", 0, process_request=made.admit) as listening:
        made.port = next(iter(listening.sockets)).getsockname()[1]
        yield made


@asynccontextmanager
async def hearing(service: Service) -> AsyncIterator[DeepgramSTT]:
    ears = transcriber(
        None, Settings(deepgram_url=f"http://127.0.0.1:{service.port}", deepgram_api_key=SecretStr("sesame"))
    )
    await ears.start()
    service.paths.clear()
    service.keys.clear()
    try:
        yield ears
    finally:
        await ears.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return made


async def test_texts_come_while_the_user_speaks_and_are_final_in_the_end(service: Service) -> None:
    async with hearing(service) as ears:
        partial = None
        while partial is None:
            partial = await ears.hear("u", PCM, "en")
            await asyncio.sleep(0)
        assert partial == "so far"
        assert await ears.finish("u") == Transcript("So good.", (Word(0, 2), Word(100, 8)))
        assert service.keys == ["Token sesame"]
        assert "language=en" in service.paths[0]
        assert "encoding=linear16&sample_rate=16000" in service.paths[0]
        await ears.hear("u", PCM)
        assert (await ears.finish("u")).text == "So good. So good."
        await ears.forget("u")


async def test_a_broken_connection_is_made_anew_with_all_that_was_said(service: Service, pauses: list[float]) -> None:
    service.cuts = 2
    async with hearing(service) as ears:
        await ears.hear("u", PCM)
        await ears.hear("u", PCM)
        assert (await ears.finish("u")).text == "So good."
    assert service.heard == [2 * PCM] * 3
    assert pauses == [0.5, 0.5]


async def test_one_that_stays_broken_fails(service: Service, pauses: list[float]) -> None:
    service.cuts = 3
    async with hearing(service) as ears:
        await ears.hear("u", PCM)
        with pytest.raises(TransientError, match="Deepgram broke off: NET-0001"):
            await ears.finish("u")


async def test_the_last_words_may_never_be_final(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echosight.engines.stt.deepgram.CONNECT_S", 0.2)
    monkeypatch.setattr("echosight.engines.stt.deepgram.FINAL_S", 0.2)
    service.silent_end = True
    async with hearing(service) as ears:
        await ears.hear("u", PCM)
        assert (await ears.finish("u")).text == "so far"


@pytest.mark.parametrize(("status", "failure"), [(401, PermanentError), (503, TransientError), (429, TransientError)])
async def test_refusals_are_told(
    service: Service, pauses: list[float], status: int, failure: type[EngineFailure]
) -> None:
    async with hearing(service) as ears:
        service.status = status
        await ears.hear("u", PCM)
        with pytest.raises(failure, match=str(status)):
            await ears.finish("u")
    assert pauses == ([] if failure is PermanentError else [3, 3])


@pytest.mark.parametrize(
    "garbage",
    ['{"type": "Results"}', "[]", "{", results("so", 0, 1, final=False).replace('"start": 0.0', '"start": "soon"')],
)
async def test_garbage_is_no_transcript(service: Service, garbage: str) -> None:
    service.garbage = garbage
    async with hearing(service) as ears:
        for _ in range(3):
            await ears.hear("u", PCM)
        with pytest.raises(EngineFailure, match="no transcript"):
            await ears.finish("u")


async def test_nobody_there(pauses: list[float]) -> None:
    async with upstream() as gone:
        settings = Settings(deepgram_url=gone.url, deepgram_api_key=SecretStr("sesame"))
    ears = transcriber(None, settings)
    with pytest.raises(SetupError, match="cannot be reached"):
        await ears.start()
    await ears.hear("u", PCM)
    with pytest.raises(TransientError, match="Deepgram cannot be reached"):
        await ears.finish("u")
    await ears.close()


async def test_it_speaks(pauses: list[float]) -> None:
    async with upstream() as server:
        server.on(
            "/v1/speak", answer({}, 405), answer({"err_msg": "later"}, 503), body(SECOND, kind="audio/l16;rate=24000")
        )
        mouth = voice(None, Settings(deepgram_url=server.url, deepgram_api_key=SecretStr("sesame")))
        await mouth.start()
        pieces = [piece async for piece in mouth.synthesize("Hello.", GenerateOptions(voice="aura-2-apollo-en"))]
        await mouth.close()
        assert b"".join(piece.pcm for piece in pieces) == SECOND
        request = server.requests[-1]
        assert request.json == {"text": "Hello."}
        assert request.query == "model=aura-2-apollo-en&encoding=linear16&sample_rate=24000&container=none"
        assert request.headers["authorization"] == "Token sesame"
    assert pauses == [0.5]


def test_it_needs_a_key() -> None:
    nothing: Any = {"deepgram_api_key": None}
    for make in (transcriber, voice):
        with pytest.raises(SetupError, match="set DEEPGRAM_API_KEY"):
            make(None, Settings(**nothing))
