"""TTS by another server: a local one that speaks OpenAI's protocol and makes mistakes."""

from __future__ import annotations

import asyncio
import io
import itertools
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.formats import wav_bytes
from echosight.engines.runtime.http_client import HttpService, PermanentError
from echosight.engines.runtime.retries import TransientError
from echosight.engines.tts import openai_http as openai_tts
from echosight.engines.tts.openai_http import OpenAITTS
from echosight.engines.tts.wav_stream import WavStream
from echosight.errors import EngineFailure
from echosight.media import AudioChunk
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.tones import tone
from tests.engines.upstream import Handler, Reply, Request, Server, answer, body, trickle, upstream

SPEECH = "/v1/audio/speech"
OPTIONS = GenerateOptions()


def wav(*chunks: bytes, kind: str = "audio/wav", whole: bool = True) -> Handler:
    return body(*chunks, kind=kind, whole=whole)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with upstream() as running:
        running.on(SPEECH, wav(wav_bytes(AudioChunk(tone(24_000), 24_000))))
        yield running


@pytest.fixture
async def tts(server: Server) -> AsyncIterator[OpenAITTS]:
    tts = openai_tts.openai("tiny", Settings(tts_api_url=f"{server.url}/v1/audio/speech"))
    await tts.start()
    yield tts
    await tts.close()


async def synthesize(tts: OpenAITTS, options: GenerateOptions = OPTIONS) -> bytes:
    return b"".join([chunk.pcm async for chunk in tts.synthesize("Hello.", options)])


def posts(server: Server) -> list[Request]:
    return [request for request in server.requests_to(SPEECH) if request.method == "POST"]


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
    (request,) = posts(server)
    assert request.json == {
        "model": "tiny", "input": "Hello.", "voice": "nova", "response_format": "wav", "speed": 4.0,
    }  # fmt: skip


async def test_the_speaking_style_is_sent(server: Server, tts: OpenAITTS) -> None:
    settings = Settings(default_tts_instructions="Calmly, like a librarian.")
    await synthesize(tts, settings.session_options().response)
    (request,) = posts(server)
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
