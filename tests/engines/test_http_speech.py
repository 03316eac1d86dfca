"""STT and TTS by other servers, on a local server that speaks OpenAI's protocol and makes mistakes."""

from __future__ import annotations

import asyncio
import io
import itertools
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.formats import decode_audio, wav_bytes
from echosight.engines.runtime.http_client import HttpService, PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.engines.stt import openai_http as openai_stt
from echosight.engines.stt.openai_http import OpenAISTT
from echosight.engines.tts import openai_http as openai_tts
from echosight.engines.tts.openai_http import OpenAITTS
from echosight.engines.tts.wav_stream import WavStream
from echosight.errors import EngineFailure, SetupError
from echosight.media import AudioChunk, Transcript, Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.upstream import Handler, Reply, Request, Server, answer, body, trickle, upstream

TRANSCRIPTIONS, SPEECH = "/v1/audio/transcriptions", "/v1/audio/speech"
OPTIONS = GenerateOptions()
WORDS = [{"word": "hello", "start": 0.1, "end": 0.4}, {"word": "World", "start": 0.5, "end": 0.9}]
HELLO = answer({"text": " Hello, world!", "language": "english", "words": WORDS})


def tone(rate: int, ms: int = 300) -> bytes:
    wave = 8000 * np.sin(np.arange(rate * ms // 1000) * 2 * np.pi * 440 / rate)
    return wave.astype("<i2").tobytes()


def wav(*chunks: bytes, kind: str = "audio/wav", whole: bool = True) -> Handler:
    return body(*chunks, kind=kind, whole=whole)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with upstream() as running:
        running.on(TRANSCRIPTIONS, HELLO)
        running.on(SPEECH, wav(wav_bytes(AudioChunk(tone(24_000), 24_000))))
        yield running


@pytest.fixture
async def stt(server: Server) -> AsyncIterator[OpenAISTT]:
    stt = openai_stt.openai("tiny", Settings(whisper_url=f"{server.url}/v1", language="en-GB"))
    await stt.start()
    yield stt
    await stt.close()


@pytest.fixture
async def tts(server: Server) -> AsyncIterator[OpenAITTS]:
    tts = openai_tts.openai("tiny", Settings(tts_api_url=f"{server.url}/v1/audio/speech"))
    await tts.start()
    yield tts
    await tts.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return pauses


def fields(request: Request) -> dict[str, bytes]:
    """A multipart form."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        found[head.decode().partition('name="')[2].partition('"')[0]] = value.removesuffix(b"\r\n")
    return found


async def synthesize(tts: OpenAITTS, options: GenerateOptions = OPTIONS) -> bytes:
    return b"".join([chunk.pcm async for chunk in tts.synthesize("Hello.", options)])


def posts(server: Server, path: str) -> list[Request]:
    return [request for request in server.asked(path) if request.method == "POST"]


# --- STT ------------------------------------------------------------------------------------------


async def transcript_of(stt: OpenAISTT, pcm: bytes, language: str | None = None) -> Transcript:
    stream = stt.open(language)
    assert await stream.push(pcm) is None
    return await stream.finalize()


def forms(server: Server) -> list[dict[str, bytes]]:
    return [fields(request) for request in posts(server, TRANSCRIPTIONS)]


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
    assert len(posts(server, TRANSCRIPTIONS)) == 1
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


# --- TTS ------------------------------------------------------------------------------------------


def unknown_length(pcm: bytes, rate: int) -> bytes:
    whole = wav_bytes(AudioChunk(pcm, rate))
    return whole[:4] + struct.pack("<I", 0xFFFFFFFF) + whole[8:40] + struct.pack("<I", 0xFFFFFFFF) + whole[44:]


@pytest.mark.parametrize(
    "script",
    [
        wav(wav_bytes(AudioChunk(tone(24_000), 24_000))),
        wav(*(bytes([b]) for b in unknown_length(tone(24_000), 24_000))),
        wav(unknown_length(tone(24_000), 24_000)[:50], unknown_length(tone(24_000), 24_000)[50:], kind="audio/x-wav"),
        wav(tone(24_000)[:4001], tone(24_000)[4001:], kind="audio/pcm"),
        wav(tone(24_000), kind="audio/pcm;rate=24000"),
    ],
    ids=["wav", "bytes", "pieces", "pcm", "rate"],
)
async def test_all_of_the_speech_arrives(server: Server, tts: OpenAITTS, script: Handler) -> None:
    server.on(SPEECH, script)
    assert await synthesize(tts, GenerateOptions(voice="nova", speed=9)) == tone(24_000)
    (request,) = posts(server, SPEECH)
    assert request.json == {
        "model": "tiny", "input": "Hello.", "voice": "nova", "response_format": "wav", "speed": 4.0,
    }  # fmt: skip


async def test_the_speaking_style_is_sent(server: Server, tts: OpenAITTS) -> None:
    settings = Settings(default_tts_instructions="Calmly, like a librarian.")
    await synthesize(tts, settings.session_options().response)
    (request,) = posts(server, SPEECH)
    assert request.json["instructions"] == "Calmly, like a librarian."


@pytest.mark.parametrize(
    "script", [wav(wav_bytes(AudioChunk(tone(16_000), 16_000))), wav(tone(16_000), kind="audio/pcm; rate=16000")]
)
async def test_other_rates_are_resampled(server: Server, tts: OpenAITTS, script: Handler) -> None:
    server.on(SPEECH, script)
    received = np.frombuffer(await synthesize(tts), "<i2").astype(float)
    expected = np.frombuffer(tone(24_000), "<i2").astype(float)
    assert len(received) == len(expected)
    middle = slice(1000, -1000)
    assert np.corrcoef(received[middle], expected[middle])[0, 1] > 0.9999


async def test_speech_is_streamed_before_it_is_complete(server: Server, tts: OpenAITTS) -> None:
    received, gone = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="audio/wav")
        await reply.write(unknown_length(tone(24_000), 24_000))
        await received.wait()
        await reply.until_gone()
        gone.set()

    server.on(SPEECH, slow)
    async with aclosing(tts.synthesize("Hello.", OPTIONS)) as chunks:
        assert (await anext(chunks)).pcm
        received.set()
    await gone.wait()


async def test_a_sentence_is_attempted_three_times(server: Server, tts: OpenAITTS, pauses: list[float]) -> None:
    sound = wav(wav_bytes(AudioChunk(tone(24_000), 24_000)))
    server.on(SPEECH, answer({}, 500), wav(), sound)
    assert await synthesize(tts) == tone(24_000)
    server.on(SPEECH, answer({}, 502))
    with pytest.raises(TransientError, match="502"):
        await synthesize(tts)
    assert pauses == [0.5] * 4


@pytest.mark.parametrize("whole", [False, True])
async def test_a_sentence_that_has_begun_is_not_begun_again(
    server: Server, tts: OpenAITTS, pauses: list[float], whole: bool
) -> None:
    half = wav_bytes(AudioChunk(tone(24_000), 24_000))[:8000]
    server.on(SPEECH, wav(half, whole=whole))
    received = b""
    with pytest.raises(TransientError, match="broke off"):
        async for chunk in tts.synthesize("Hello.", OPTIONS):
            received += chunk.pcm
    assert tone(24_000).startswith(received)
    assert received
    assert pauses == []


@pytest.mark.parametrize(
    ("script", "failure", "message"),
    [
        (wav(b"ID3", kind="audio/mpeg"), EngineFailure, "Expected WAV or PCM from .* but got audio/mpeg"),
        (wav(b"<html>", kind="text/html"), EngineFailure, "text/html"),
        (wav(b"Ogg", b"S" + bytes(9000), kind="application/octet-stream"), EngineFailure, "PCM but got an Ogg file"),
        (wav(b'{"error": "no such voice"}'), EngineFailure, "but got JSON"),
        (wav(tone(24_000), kind="audio/pcm; rate=24000; channels=2"), EngineFailure, "2 channels"),
        (answer({"error": {"message": "no such voice"}}, 400), PermanentError, "no such voice"),
        (wav(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 3, 2, 8000, 0, 8, 32) + b"data"),
         EngineFailure, "Expected mono PCM16 but got a WAV file of 2 channels"),
        (wav(b"RIFF" + bytes(70_000)), EngineFailure, "found no samples"),
    ],
)  # fmt: skip
async def test_a_response_that_is_no_pcm_is_a_failure(
    server: Server, tts: OpenAITTS, script: Handler, failure: type[Exception], message: str
) -> None:
    server.on(SPEECH, script)
    with pytest.raises(failure, match=message):
        await synthesize(tts)


async def test_speech_that_comes_too_slowly_is_a_failure(server: Server, pauses: list[float]) -> None:
    server.on(SPEECH, trickle(b"\1\0", kind="audio/pcm"))
    tts = OpenAITTS(HttpService(f"{server.url}{SPEECH}", read_timeout_s=0.1), "tiny")
    await tts.service.start()
    with pytest.raises(TransientError, match="too slowly"):
        await synthesize(tts)
    assert pauses == [0.5, 0.5]
    await tts.close()


@given(cuts=st.lists(st.integers(0, 700), max_size=8), extra=st.binary(max_size=9), known=st.booleans())
def test_a_file_may_arrive_in_chunks_of_any_size(cuts: list[int], extra: bytes, known: bool) -> None:
    pcm = tone(8_000, 40)
    file = wav_bytes(AudioChunk(pcm, 8_000)) + extra if known else unknown_length(pcm, 8_000)
    stream = WavStream(24_000)
    edges = [0, *sorted(min(cut, len(file)) for cut in cuts), len(file)]
    received = b"".join(stream.push(file[a:b]) for a, b in itertools.pairwise(edges))
    assert (received, stream.rate, stream.incomplete) == (pcm, 8_000, False)


def test_chunks_between_format_and_samples_are_skipped() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(tone(16_000))
    data = file.getvalue()
    listed = data[:36] + b"LIST\x03\0\0\0abc\0" + data[36:]
    assert WavStream(1).push(listed) == tone(16_000)


# --- start ----------------------------------------------------------------------------------------


async def test_start_fails_where_no_server_listens() -> None:
    async with upstream() as gone:
        settings = Settings(whisper_url=gone.url, tts_api_url=gone.url)
    for part in (openai_stt.openai(None, settings), openai_tts.openai(None, settings)):
        with pytest.raises(SetupError, match=r"cannot be reached.*check the address http"):
            await part.start()
        await part.close()


async def test_start_fails_where_the_key_is_refused(server: Server) -> None:
    server.on(SPEECH, answer({"error": {"message": "Incorrect API key"}}, 401))
    tts = OpenAITTS(HttpService(f"{server.url}{SPEECH}", "x"), "tts-1")
    with pytest.raises(SetupError, match=r"authentication failed; check the API key \(401\): Incorrect API key"):
        await tts.start()
    await tts.close()


def test_hosted_speech_needs_keys() -> None:
    no_keys: dict[str, Any] = {"openai_api_key": None, "groq_api_key": None}
    for create in (openai_stt.openai, openai_stt.groq, openai_tts.openai):
        with pytest.raises(SetupError, match=r"set .*_API_KEY"):
            create(None, Settings(**no_keys))
