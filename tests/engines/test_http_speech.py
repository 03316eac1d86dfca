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
from echosight.engines.stt import openai_http as stt
from echosight.engines.stt.openai_http import OpenAISTT
from echosight.engines.tts import openai_http as tts
from echosight.engines.tts.openai_http import OpenAITTS
from echosight.engines.tts.wav_stream import WavStream
from echosight.errors import EngineFailure, SetupError
from echosight.media import AudioChunk, Transcript, Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.upstream import Handler, Reply, Request, Server, answer, body, trickle, upstream

HEAR, SPEAK = "/v1/audio/transcriptions", "/v1/audio/speech"
OPTIONS = GenerateOptions()
WORDS = [{"word": "hello", "start": 0.1, "end": 0.4}, {"word": "World", "start": 0.5, "end": 0.9}]
HEARD = answer({"text": " Hello, world!", "language": "english", "words": WORDS})


def tone(rate: int, ms: int = 300) -> bytes:
    wave = 8000 * np.sin(np.arange(rate * ms // 1000) * 2 * np.pi * 440 / rate)
    return wave.astype("<i2").tobytes()


def wav(*pieces: bytes, kind: str = "audio/wav", whole: bool = True) -> Handler:
    return body(*pieces, kind=kind, whole=whole)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with upstream() as running:
        running.on(HEAR, HEARD)
        running.on(SPEAK, wav(wav_bytes(AudioChunk(tone(24_000), 24_000))))
        yield running


@pytest.fixture
async def ears(server: Server) -> AsyncIterator[OpenAISTT]:
    made = stt.openai("tiny", Settings(whisper_url=f"{server.url}/v1", language="en-GB"))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def mouth(server: Server) -> AsyncIterator[OpenAITTS]:
    made = tts.openai("tiny", Settings(tts_api_url=f"{server.url}/v1/audio/speech"))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return made


def fields(request: Request) -> dict[str, bytes]:
    """A multipart form."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        found[head.decode().partition('name="')[2].partition('"')[0]] = value.removesuffix(b"\r\n")
    return found


async def spoken(mouth: OpenAITTS, options: GenerateOptions = OPTIONS) -> bytes:
    return b"".join([piece.pcm async for piece in mouth.synthesize("Hello.", options)])


def posts(server: Server, path: str) -> list[Request]:
    return [request for request in server.asked(path) if request.method == "POST"]


# --- hearing --------------------------------------------------------------------------------------


async def test_an_utterance_is_sent_whole_and_its_words_are_placed(server: Server, ears: OpenAISTT) -> None:
    assert await ears.hear("u", tone(16_000)) is None
    await ears.hear("u", tone(16_000))
    transcript = await ears.finish("u")
    assert transcript == Transcript("Hello, world!", (Word(100, 6), Word(500, 13)), "english")
    (request,) = posts(server, HEAR)
    form = fields(request)
    assert decode_audio(form["file"]) == AudioChunk(2 * tone(16_000), 16_000)
    assert (form["model"], form["language"], form["response_format"]) == (b"tiny", b"en", b"verbose_json")


async def test_only_what_is_new_is_asked_again(server: Server, ears: OpenAISTT) -> None:
    await ears.hear("u", tone(16_000))
    assert await ears.finish("u") == await ears.finish("u")
    assert len(posts(server, HEAR)) == 1
    await ears.hear("u", tone(16_000), "de")
    await ears.finish("u")
    assert len(decode_audio(fields(posts(server, HEAR)[1])["file"]).pcm) == 2 * len(tone(16_000))
    await ears.forget("u")
    with pytest.raises(EngineFailure, match="heard nothing"):
        await ears.finish("u")


async def test_a_server_without_word_times_is_asked_for_text(server: Server, ears: OpenAISTT) -> None:
    server.on(HEAR, answer({"detail": "response_format"}, 400), answer({"text": "Hi."}))
    for utterance in ("a", "b"):
        await ears.hear(utterance, tone(16_000))
        assert await ears.finish(utterance) == Transcript("Hi.")
    assert [fields(request)["response_format"] for request in posts(server, HEAR)] == [
        b"verbose_json",
        b"json",
        b"json",
    ]


async def test_one_request_that_is_not_taken_costs_no_word_times(server: Server, ears: OpenAISTT) -> None:
    too_short = answer({"error": {"message": "audio is too short"}}, 400)
    server.on(HEAR, too_short, too_short, HEARD)
    await ears.hear("a", bytes(32))
    with pytest.raises(PermanentError, match="too short"):
        await ears.finish("a")
    await ears.hear("b", tone(16_000))
    await ears.finish("b")
    asked = [fields(request)["response_format"] for request in posts(server, HEAR)]
    assert asked == [b"verbose_json", b"json", b"verbose_json"]


async def test_an_answer_that_never_ends_is_not_waited_for(server: Server, pauses: list[float]) -> None:
    server.on(HEAR, trickle(b" "))
    ears = OpenAISTT(HttpService(f"{server.url}{HEAR}", silence_s=0.1), "tiny")
    await ears.upstream.start()
    await ears.hear("u", tone(16_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("echosight.engines.runtime.http_client.CONNECT_S", 0.0)
        with pytest.raises(TransientError, match="was not done within"):
            await ears.finish("u")
        patch.setattr("echosight.engines.runtime.http_client.CONNECT_S", 60.0)
        patch.setattr("echosight.engines.runtime.http_client.ANSWER_BYTES", 5)
        with pytest.raises(EngineFailure, match="without end"):
            await ears.finish("u")
    await ears.close()


async def test_where_nobody_speaks_nothing_is_written(server: Server, ears: OpenAISTT) -> None:
    silence = {"no_speech_prob": 0.9, "avg_logprob": -1.4}
    server.on(HEAR, answer({"text": "Thanks for watching!", "segments": [silence]}))
    await ears.hear("u", bytes(3200))
    assert (await ears.finish("u")).text == ""


async def test_hearing_is_tried_three_times(server: Server, ears: OpenAISTT, pauses: list[float]) -> None:
    server.on(HEAR, answer({}, 500), body(b'{"te', whole=False), HEARD)
    await ears.hear("u", tone(16_000))
    assert (await ears.finish("u")).text == "Hello, world!"
    server.on(HEAR, answer({}, 429))
    await ears.hear("u", tone(16_000))
    with pytest.raises(TransientError, match="429"):
        await ears.finish("u")
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
async def test_garbage_is_no_transcript(server: Server, ears: OpenAISTT, script: Handler) -> None:
    server.on(HEAR, script)
    await ears.hear("u", tone(16_000))
    with pytest.raises(EngineFailure, match=r"is no JSON|is no transcript"):
        await ears.finish("u")


# --- speaking -------------------------------------------------------------------------------------


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
async def test_sound_arrives_whole(server: Server, mouth: OpenAITTS, script: Handler) -> None:
    server.on(SPEAK, script)
    assert await spoken(mouth, GenerateOptions(voice="nova", speed=9)) == tone(24_000)
    (request,) = posts(server, SPEAK)
    assert request.json == {
        "model": "tiny", "input": "Hello.", "voice": "nova", "response_format": "wav", "speed": 4.0,
    }  # fmt: skip


async def test_how_to_speak_is_handed_on(server: Server, mouth: OpenAITTS) -> None:
    settings = Settings(default_tts_instructions="Calmly, like a librarian.")
    await spoken(mouth, settings.session_options().response)
    (request,) = posts(server, SPEAK)
    assert request.json["instructions"] == "Calmly, like a librarian."


@pytest.mark.parametrize(
    "script", [wav(wav_bytes(AudioChunk(tone(16_000), 16_000))), wav(tone(16_000), kind="audio/pcm; rate=16000")]
)
async def test_other_rates_are_brought_to_its_own(server: Server, mouth: OpenAITTS, script: Handler) -> None:
    server.on(SPEAK, script)
    heard = np.frombuffer(await spoken(mouth), "<i2").astype(float)
    wanted = np.frombuffer(tone(24_000), "<i2").astype(float)
    assert len(heard) == len(wanted)
    middle = slice(1000, -1000)
    assert np.corrcoef(heard[middle], wanted[middle])[0, 1] > 0.9999


async def test_sound_is_passed_on_before_it_is_complete(server: Server, mouth: OpenAITTS) -> None:
    heard, gone = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        await reply.head(Content_Type="audio/wav")
        await reply.write(unknown_length(tone(24_000), 24_000))
        await heard.wait()
        await reply.until_gone()
        gone.set()

    server.on(SPEAK, slow)
    async with aclosing(mouth.synthesize("Hello.", OPTIONS)) as pieces:
        assert (await anext(pieces)).pcm
        heard.set()
    await gone.wait()


async def test_speaking_is_tried_three_times(server: Server, mouth: OpenAITTS, pauses: list[float]) -> None:
    sound = wav(wav_bytes(AudioChunk(tone(24_000), 24_000)))
    server.on(SPEAK, answer({}, 500), wav(), sound)
    assert await spoken(mouth) == tone(24_000)
    server.on(SPEAK, answer({}, 502))
    with pytest.raises(TransientError, match="502"):
        await spoken(mouth)
    assert pauses == [0.5] * 4


@pytest.mark.parametrize("whole", [False, True])
async def test_half_a_sentence_is_not_begun_again(
    server: Server, mouth: OpenAITTS, pauses: list[float], whole: bool
) -> None:
    half = wav_bytes(AudioChunk(tone(24_000), 24_000))[:8000]
    server.on(SPEAK, wav(half, whole=whole))
    heard = b""
    with pytest.raises(TransientError, match="broke off"):
        async for piece in mouth.synthesize("Hello.", OPTIONS):
            heard += piece.pcm
    assert tone(24_000).startswith(heard)
    assert heard
    assert pauses == []


@pytest.mark.parametrize(
    ("script", "failure", "message"),
    [
        (wav(b"ID3", kind="audio/mpeg"), EngineFailure, "audio/mpeg; WAV or PCM was asked for"),
        (wav(b"<html>", kind="text/html"), EngineFailure, "text/html"),
        (wav(b"Ogg", b"S" + bytes(9000), kind="application/octet-stream"), EngineFailure, "begins with b'OggS'"),
        (wav(b'{"error": "no such voice"}'), EngineFailure, "is no PCM"),
        (wav(tone(24_000), kind="audio/pcm; rate=24000; channels=2"), EngineFailure, "2 channels"),
        (answer({"error": {"message": "no such voice"}}, 400), PermanentError, "no such voice"),
        (wav(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 3, 2, 8000, 0, 8, 32) + b"data"),
         EngineFailure, "must be mono PCM16"),
        (wav(b"RIFF" + bytes(70_000)), EngineFailure, "without samples"),
    ],
)  # fmt: skip
async def test_what_is_no_sound_is_not_played(
    server: Server, mouth: OpenAITTS, script: Handler, failure: type[Exception], message: str
) -> None:
    server.on(SPEAK, script)
    with pytest.raises(failure, match=message):
        await spoken(mouth)


async def test_sound_by_drops_is_not_waited_for(server: Server, pauses: list[float]) -> None:
    server.on(SPEAK, trickle(b"\1\0", kind="audio/pcm"))
    mouth = OpenAITTS(HttpService(f"{server.url}{SPEAK}", silence_s=0.1), "tiny")
    await mouth.upstream.start()
    with pytest.raises(TransientError, match="next to nothing"):
        await spoken(mouth)
    assert pauses == [0.5, 0.5]
    await mouth.close()


@given(cuts=st.lists(st.integers(0, 700), max_size=8), extra=st.binary(max_size=9), known=st.booleans())
def test_how_a_file_is_cut_changes_nothing(cuts: list[int], extra: bytes, known: bool) -> None:
    pcm = tone(8_000, 40)
    file = wav_bytes(AudioChunk(pcm, 8_000)) + extra if known else unknown_length(pcm, 8_000)
    stream = WavStream(24_000)
    edges = [0, *sorted(min(cut, len(file)) for cut in cuts), len(file)]
    heard = b"".join(stream.feed(file[a:b]) for a, b in itertools.pairwise(edges))
    assert (heard, stream.rate, stream.missing) == (pcm, 8_000, False)


def test_chunks_between_format_and_samples_are_skipped() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(tone(16_000))
    data = file.getvalue()
    listed = data[:36] + b"LIST\x03\0\0\0abc\0" + data[36:]
    assert WavStream(1).feed(listed) == tone(16_000)


# --- start ----------------------------------------------------------------------------------------


async def test_nobody_there_is_told_at_start() -> None:
    async with upstream() as gone:
        settings = Settings(whisper_url=gone.url, tts_api_url=gone.url)
    for part in (stt.openai(None, settings), tts.openai(None, settings)):
        with pytest.raises(SetupError, match=r"cannot be reached.*is its address right\? http"):
            await part.start()
        await part.close()


async def test_a_key_that_is_not_admitted_is_told_at_start(server: Server) -> None:
    server.on(SPEAK, answer({"error": {"message": "Incorrect API key"}}, 401))
    mouth = OpenAITTS(HttpService(f"{server.url}{SPEAK}", "x"), "tts-1")
    with pytest.raises(SetupError, match=r"wants a key, or another one \(401\): Incorrect API key"):
        await mouth.start()
    await mouth.close()


def test_hosted_speech_needs_keys() -> None:
    none: dict[str, Any] = {"openai_api_key": None, "groq_api_key": None}
    for make in (stt.openai, stt.groq, tts.openai):
        with pytest.raises(SetupError, match=r"set .*_API_KEY"):
            make(None, Settings(**none))
