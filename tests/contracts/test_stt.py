"""The contract of `STT` and `STTStream`, for every implementation: see `tests/contracts/stts.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from echosight.engines import STT, STTStream
from echosight.errors import EngineFailure
from echosight.media import AudioChunk, Transcript, pcm_ms
from tests.conftest import Flite
from tests.contracts.harness import UNKNOWN_LANGUAGE, Folder, Running, check_words, require, started
from tests.contracts.stts import STTS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    def write(kind: str) -> Path:
        require("faster_whisper", "ctranslate2", "torch", "transformers")
        from tests.engines.stt.tiny_whisper import write_whisper

        return write_whisper(tmp_path_factory.mktemp(kind))

    return write


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STTS)
async def case(request: pytest.FixtureRequest, folder: Folder) -> AsyncIterator[Running[STT]]:
    async with STTS[request.param](folder) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stt(case: Running[STT]) -> AsyncIterator[STT]:
    async with started(case):
        yield case.part


# --- helpers --------------------------------------------------------------------------------------


async def push_all(stream: STTStream, speech: AudioChunk, size: int = 6400) -> None:
    for start in range(0, len(speech.pcm), size):
        partial = await stream.push(speech.pcm[start : start + size])
        assert partial is None or isinstance(partial, str)


async def transcribe(stt: STT, speech: AudioChunk, language: str | None = "en", size: int = 6400) -> Transcript:
    stream = stt.open(language, "somebody")
    await push_all(stream, speech, size)
    transcript = await stream.finalize()
    await stream.close()
    check(transcript, speech)
    return transcript


def check(transcript: Transcript, speech: AudioChunk) -> None:
    assert isinstance(transcript.text, str)
    assert transcript.text == transcript.text.strip()
    assert transcript.final
    assert transcript.language is None or isinstance(transcript.language, str)
    check_words(transcript.words, transcript.text, pcm_ms(len(speech.pcm)))


@pytest.fixture(scope="module")
def hello(flite: Flite) -> AudioChunk:
    return flite("hello how are you today")


@pytest.fixture(scope="module")
def count(flite: Flite) -> AudioChunk:
    return flite("one two three four five six", "awb")


# --- the contract ---------------------------------------------------------------------------------


async def test_speech_becomes_text_with_words_in_order(stt: STT, hello: AudioChunk) -> None:
    assert (await transcribe(stt, hello)).text
    assert isinstance(stt.name, str)


async def test_a_stream_without_speech_gives_an_empty_transcript(stt: STT) -> None:
    stream = stt.open()
    for _ in range(2):
        transcript = await stream.finalize()
        assert (transcript.text, transcript.words) == ("", ())
        assert await stream.push(b"") is None
    await stream.close()


async def test_the_size_of_the_chunks_does_not_change_the_transcript(stt: STT, hello: AudioChunk) -> None:
    straight = await transcribe(stt, hello, size=len(hello.pcm))
    stream = stt.open("en", "somebody")
    await stream.push(b"")
    await stream.push(hello.pcm[:2])
    await stream.push(hello.pcm[2:8])
    await stream.push(b"")
    await push_all(stream, AudioChunk(hello.pcm[8:]), 2 * 3001)
    assert (await stream.finalize()).text == straight.text
    await stream.close()


async def test_one_sample_is_a_whole_utterance(stt: STT) -> None:
    sample = AudioChunk(b"\x01\x00")
    stream = stt.open()
    await stream.push(sample.pcm)
    check(await stream.finalize(), sample)
    await stream.close()


async def test_finalizing_twice_gives_the_same(stt: STT, hello: AudioChunk) -> None:
    stream = stt.open("en", "somebody")
    await push_all(stream, hello)
    assert await stream.finalize() == await stream.finalize()
    await stream.close()


async def test_more_speech_may_follow_a_finalize(stt: STT, hello: AudioChunk, count: AudioChunk) -> None:
    both = AudioChunk(hello.pcm + count.pcm)
    stream = stt.open("en", "somebody")
    await push_all(stream, hello)
    first = await stream.finalize()
    await push_all(stream, count)
    second = await stream.finalize()
    check(second, both)
    assert second.text != first.text
    await stream.close()


async def test_streams_at_the_same_time_do_not_mix(stt: STT, hello: AudioChunk, count: AudioChunk) -> None:
    alone = [await transcribe(stt, speech) for speech in (hello, count)]
    assert alone[0].text != alone[1].text
    together = await asyncio.gather(transcribe(stt, hello), transcribe(stt, count))
    assert [transcript.text for transcript in together] == [transcript.text for transcript in alone]


@pytest.mark.parametrize("language", [None, UNKNOWN_LANGUAGE, ""])
async def test_no_language_and_an_unknown_one_are_fine(stt: STT, hello: AudioChunk, language: str | None) -> None:
    check(await transcribe(stt, hello, language), hello)


async def test_a_cancelled_finalize_may_be_repeated(stt: STT, hello: AudioChunk) -> None:
    expected = await transcribe(stt, hello)
    stream = stt.open("en", "somebody")
    await push_all(stream, hello)
    finalizing = asyncio.create_task(stream.finalize())
    await asyncio.sleep(0)
    finalizing.cancel()
    await asyncio.wait([finalizing])
    assert (await stream.finalize()).text == expected.text
    await stream.close()


async def test_after_a_cancelled_push_another_stream_works(stt: STT, hello: AudioChunk) -> None:
    expected = await transcribe(stt, hello)
    stream = stt.open("en", "somebody")
    pushing = asyncio.create_task(push_all(stream, AudioChunk(hello.pcm * 20)))
    await asyncio.sleep(0.01)
    pushing.cancel()
    await asyncio.wait([pushing])
    await stream.close()
    assert (await transcribe(stt, hello)).text == expected.text


@pytest.mark.parametrize("call", ["push", "finalize"])
async def test_closing_ends_the_call_in_progress(stt: STT, hello: AudioChunk, call: str) -> None:
    stream = stt.open("en", "somebody")
    await push_all(stream, hello)
    long = AudioChunk(hello.pcm * 20)
    running = asyncio.create_task(push_all(stream, long) if call == "push" else stream.finalize())
    await asyncio.sleep(0)
    await stream.close()
    # It raises, or was complete already.
    with suppress(EngineFailure):
        await asyncio.wait_for(running, 20)
    assert (await transcribe(stt, hello)).text


async def test_a_closed_stream_may_be_closed_again_and_refuses_calls(stt: STT, hello: AudioChunk) -> None:
    for pcm in (b"", hello.pcm):
        stream = stt.open()
        await stream.push(pcm)
        await stream.close()
        await stream.close()
        with pytest.raises(EngineFailure, match="closed"):
            await stream.push(hello.pcm)
        with pytest.raises(EngineFailure, match="closed"):
            await stream.finalize()
        await stream.close()


@pytest.mark.parametrize("kind", STTS)
async def test_it_starts_and_closes_twice_and_closes_without_a_start(
    kind: str, folder: Folder, hello: AudioChunk
) -> None:
    async with STTS[kind](folder) as running:
        stt = running.part
        await stt.close()
        for _ in range(2):
            await stt.start()
            assert (await transcribe(stt, hello)).text
            stream = stt.open()
            await stream.push(hello.pcm)
            await stt.close()
            with pytest.raises(EngineFailure):
                await stream.finalize()
            await stream.close()
            await stt.close()
