"""STT by another server: a local one that speaks OpenAI's protocol and makes mistakes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from echosight.audio.formats import decode_audio
from echosight.engines.runtime.http_client import HttpService, PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.engines.stt import openai_http as openai_stt
from echosight.engines.stt.openai_http import OpenAISTT
from echosight.errors import EngineFailure
from echosight.media import AudioChunk, Transcript, Word
from echosight.settings import Settings
from tests.engines.tones import tone
from tests.engines.upstream import Handler, Request, Server, answer, body, trickle, upstream

TRANSCRIPTIONS = "/v1/audio/transcriptions"
WORDS = [{"word": "hello", "start": 0.1, "end": 0.4}, {"word": "World", "start": 0.5, "end": 0.9}]
HELLO = answer({"text": " Hello, world!", "language": "english", "words": WORDS})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with upstream() as running:
        running.on(TRANSCRIPTIONS, HELLO)
        yield running


@pytest.fixture
async def stt(server: Server) -> AsyncIterator[OpenAISTT]:
    stt = openai_stt.openai("tiny", Settings(whisper_url=f"{server.url}/v1", language="en-GB"))
    await stt.start()
    yield stt
    await stt.close()


def fields(request: Request) -> dict[str, bytes]:
    """A multipart form."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        found[head.decode().partition('name="')[2].partition('"')[0]] = value.removesuffix(b"\r\n")
    return found


def posts(server: Server) -> list[Request]:
    return [request for request in server.requests_to(TRANSCRIPTIONS) if request.method == "POST"]


async def transcript_of(stt: OpenAISTT, pcm: bytes, language: str | None = None) -> Transcript:
    stream = stt.open(language)
    assert await stream.push(pcm) is None
    return await stream.finalize()


def forms(server: Server) -> list[dict[str, bytes]]:
    return [fields(request) for request in posts(server)]


async def test_the_utterance_is_sent_whole_and_its_words_are_aligned(server: Server, stt: OpenAISTT) -> None:
    stream = stt.open()
    for _ in range(2):
        assert await stream.push(tone(16_000)) is None
    assert await stream.finalize() == Transcript("Hello, world!", (Word(100, 6), Word(500, 13)), "english")
    (form,) = forms(server)
    assert decode_audio(form["file"]) == AudioChunk(2 * tone(16_000), 16_000)
    assert (form["model"], form["language"], form["response_format"]) == (b"tiny", b"en", b"verbose_json")


async def test_words_stay_in_order_and_inside_text_and_audio(server: Server, stt: OpenAISTT) -> None:
    words = [
        {"word": word, "start": start}
        for word, start in (("no", 0.2), ("İstanbul", 0.1), ("", 0.2), ("never", 0.2), ("no", 9.9), ("no", 10))
    ]
    server.on(TRANSCRIPTIONS, answer({"text": "No İSTANBUL, no.", "words": words}))
    assert (await transcript_of(stt, tone(16_000))).words == (Word(200, 2), Word(200, 12), Word(300, 16))


async def test_a_request_is_only_repeated_when_there_is_more_audio(server: Server, stt: OpenAISTT) -> None:
    stream = stt.open("de")
    await stream.push(tone(16_000))
    assert await stream.finalize() == await stream.finalize()
    assert len(posts(server)) == 1
    await stream.push(tone(16_000))
    await stream.finalize()
    assert len(decode_audio(forms(server)[1]["file"]).pcm) == 2 * len(tone(16_000))
    assert forms(server)[1]["language"] == b"de"
    await stream.close()
    with pytest.raises(EngineFailure, match="closed"):
        await stream.finalize()


async def test_a_server_without_word_times_is_asked_for_the_text_only(server: Server, stt: OpenAISTT) -> None:
    server.on(TRANSCRIPTIONS, answer({"detail": "response_format"}, 400), answer({"text": "Hi."}))
    for _ in range(2):
        assert await transcript_of(stt, tone(16_000)) == Transcript("Hi.")
    assert [form["response_format"] for form in forms(server)] == [b"verbose_json", b"json", b"json"]


async def test_a_language_that_the_server_refuses_is_left_to_the_model(server: Server, stt: OpenAISTT) -> None:
    refusal = answer({"error": {"message": "Invalid language 'xx'", "param": "language"}}, 400)
    server.on(TRANSCRIPTIONS, refusal, HELLO)
    assert (await transcript_of(stt, tone(16_000), "xx")).text == "Hello, world!"
    assert [form.get("language") for form in forms(server)] == [b"xx", None]


async def test_a_refused_recording_does_not_turn_word_times_off(server: Server, stt: OpenAISTT) -> None:
    too_short = answer({"error": {"message": "audio is too short"}}, 400)
    server.on(TRANSCRIPTIONS, too_short, too_short, HELLO)
    with pytest.raises(PermanentError, match="too short"):
        await transcript_of(stt, bytes(32))
    await transcript_of(stt, tone(16_000))
    assert [form["response_format"] for form in forms(server)] == [b"verbose_json", b"json", b"verbose_json"]


async def test_a_response_without_end_is_a_failure(server: Server, pauses: list[float]) -> None:
    server.on(TRANSCRIPTIONS, trickle(b" "))
    stt = OpenAISTT(HttpService(f"{server.url}{TRANSCRIPTIONS}", read_timeout_s=0.1), "tiny")
    await stt.service.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("echosight.engines.runtime.http_client.CONNECT_TIMEOUT_S", 0.0)
        with pytest.raises(TransientError, match="did not finish its response within"):
            await transcript_of(stt, tone(16_000))
        patch.setattr("echosight.engines.runtime.http_client.CONNECT_TIMEOUT_S", 60.0)
        patch.setattr("echosight.engines.runtime.http_client.MAX_RESPONSE_BYTES", 5)
        with pytest.raises(EngineFailure, match="sent more than 5 bytes"):
            await transcript_of(stt, tone(16_000))
    await stt.close()


async def test_silence_has_no_text(server: Server, stt: OpenAISTT) -> None:
    silence = {"no_speech_prob": 0.9, "avg_logprob": -1.4}
    server.on(TRANSCRIPTIONS, answer({"text": "Thanks for watching!", "segments": [silence]}))
    assert (await transcript_of(stt, bytes(3200))).text == ""


async def test_a_transcription_is_attempted_three_times(server: Server, stt: OpenAISTT, pauses: list[float]) -> None:
    server.on(TRANSCRIPTIONS, answer({}, 500), body(b'{"te', whole=False), HELLO)
    assert (await transcript_of(stt, tone(16_000))).text == "Hello, world!"
    server.on(TRANSCRIPTIONS, answer({}, 429))
    with pytest.raises(TransientError, match="429"):
        await transcript_of(stt, tone(16_000))
    assert pauses == [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "script",
    [
        body(b"<html>"),
        answer([]),
        answer({}),
        answer({"text": None}),
        answer({"text": "", "words": [3]}),
        answer({"text": "a", "words": [{"word": "a", "start": "inf"}]}),
    ],
)
async def test_a_response_that_is_no_transcript_is_a_failure(server: Server, stt: OpenAISTT, script: Handler) -> None:
    server.on(TRANSCRIPTIONS, script)
    with pytest.raises(EngineFailure, match=r"is not JSON|is no transcript"):
        await transcript_of(stt, tone(16_000))
