"""The contract of `TTS`, for every implementation: see `tests/contracts/ttss.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from echosight.engines import TTS, SpeechChunk
from echosight.errors import EngineFailure
from echosight.media import Word, pcm_ms
from echosight.options import GenerateOptions
from tests.contracts.harness import (
    UNKNOWN_LANGUAGE,
    Folder,
    Running,
    cancel_after_first,
    check_words,
    no_task_left,
    read_first,
    require,
    started,
    until_stopped,
)
from tests.contracts.ttss import TTSS

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Hello, how are you today? It's 5 o'clock."
OTHER = "Certainly not before the rain has stopped!"
LONG = "The rain had stopped, and many people went to the café at once, all of them. " * 4
PLAIN = GenerateOptions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    def write(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind)
        if kind == "vits":
            require("torch", "transformers")
            from tests.engines.tiny_local import write_vits

            return write_vits(path)
        if kind == "piper-program":
            return path
        require("onnx", "piper" if kind == "piper" else "kokoro_onnx")
        from tests.engines.tts.tiny_onnx import write_kokoro, write_piper

        return write_piper(path) if kind == "piper" else write_kokoro(path, timed=kind == "kokoro")

    return write


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=TTSS)
async def case(request: pytest.FixtureRequest, folder: Folder) -> AsyncIterator[Running[TTS]]:
    async with TTSS[request.param](folder) as running, started(running):
        yield running


@pytest.fixture(scope="module")
def tts(case: Running[TTS]) -> TTS:
    return case.part


# --- helpers --------------------------------------------------------------------------------------


async def synthesize(tts: TTS, text: str, options: GenerateOptions = PLAIN) -> list[SpeechChunk]:
    async with aclosing(tts.synthesize(text, options)) as speech:
        chunks = [chunk async for chunk in speech]
    check(tts, chunks, text)
    return chunks


def check(tts: TTS, chunks: list[SpeechChunk], text: str) -> None:
    for chunk in chunks:
        assert isinstance(chunk, SpeechChunk)
        assert isinstance(chunk.pcm, bytes)
        assert len(chunk.pcm) % 2 == 0
    check_words(words_of(chunks), text, pcm_ms(len(pcm_of(chunks)), tts.rate))


def pcm_of(chunks: list[SpeechChunk]) -> bytes:
    return b"".join(chunk.pcm for chunk in chunks)


def words_of(chunks: list[SpeechChunk]) -> list[Word]:
    return [word for chunk in chunks for word in chunk.words]


# --- the contract ---------------------------------------------------------------------------------


async def test_text_becomes_speech_with_words_in_order(tts: TTS) -> None:
    chunks = await synthesize(tts, TEXT)
    assert pcm_ms(len(pcm_of(chunks)), tts.rate) > 100
    if words := words_of(chunks):
        assert words[-1].text_end == len(TEXT)


async def test_name_rate_and_voices_are_known(tts: TTS) -> None:
    assert isinstance(tts.name, str) and tts.name
    assert 1000 <= tts.rate <= 192_000
    assert all(isinstance(voice, str) for voice in tts.voices)


@pytest.mark.parametrize("text", ["", " ", "…", "a", "\n", "Grüße, 你好 😀!", "one\ntwo", "\0", "-" * 500])
async def test_any_text_is_fine(tts: TTS, text: str) -> None:
    await synthesize(tts, text)


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(voice="no such voice"),
        GenerateOptions(language=UNKNOWN_LANGUAGE),
        GenerateOptions(language=""),
        GenerateOptions(language="en-US", speed=0.25),
        GenerateOptions(language="en", speed=4.0),
    ],
)
async def test_unknown_voices_and_languages_and_all_speeds_are_fine(tts: TTS, options: GenerateOptions) -> None:
    assert pcm_of(await synthesize(tts, TEXT, options))


async def test_every_voice_speaks(tts: TTS) -> None:
    for voice in tts.voices[:3]:
        assert pcm_of(await synthesize(tts, TEXT, GenerateOptions(voice=voice)))


async def test_closing_the_generator_stops_the_synthesis(case: Running[TTS]) -> None:
    began = case.steps()
    await synthesize(case.part, LONG)
    all_steps = await until_stopped(case.steps) - began
    async with no_task_left():
        began = case.steps()
        await read_first(case.part.synthesize(LONG, PLAIN))
        steps = await until_stopped(case.steps) - began
    if case.incremental:
        assert steps < all_steps / 2
    assert pcm_of(await synthesize(case.part, TEXT))


async def test_a_cancelled_reader_leaves_nothing_behind(tts: TTS) -> None:
    async with no_task_left():
        await cancel_after_first(tts.synthesize(LONG, PLAIN))
    assert pcm_of(await synthesize(tts, TEXT))


async def test_a_generator_that_was_never_read_may_be_closed(tts: TTS) -> None:
    async with no_task_left():
        await tts.synthesize(TEXT, PLAIN).aclose()


async def test_sentences_at_the_same_time_do_not_mix(tts: TTS) -> None:
    texts = TEXT, OTHER
    alone = [await synthesize(tts, text) for text in texts]
    again = [await synthesize(tts, text) for text in texts]
    together = await asyncio.gather(*(synthesize(tts, text) for text in texts))
    for first, second, third in zip(alone, again, together, strict=True):
        assert [word.text_end for word in words_of(third)] == [word.text_end for word in words_of(first)]
        # Some models draw random numbers.
        if pcm_of(first) == pcm_of(second):
            assert pcm_of(third) == pcm_of(first)


async def test_a_slow_reader_does_not_hold_back_another(tts: TTS) -> None:
    speech: AsyncGenerator[SpeechChunk] = tts.synthesize(LONG, PLAIN)
    async with aclosing(speech), asyncio.timeout(20):
        await anext(speech)
        assert pcm_of(await synthesize(tts, TEXT))


@pytest.mark.parametrize("kind", TTSS)
async def test_it_starts_and_closes_twice_and_closes_without_a_start(kind: str, folder: Folder) -> None:
    async with TTSS[kind](folder) as running:
        tts = running.part
        await tts.close()
        for _ in range(2):
            await tts.start()
            assert pcm_of(await synthesize(tts, TEXT))
            await tts.close()
            await tts.close()


NEEDS_START = [kind for kind in TTSS if not kind.startswith(("scripted", "piper-program"))]


@pytest.mark.parametrize("kind", NEEDS_START)
async def test_without_a_start_it_fails_and_does_not_hang(kind: str, folder: Folder) -> None:
    async with TTSS[kind](folder) as running:
        with pytest.raises(EngineFailure):
            await synthesize(running.part, TEXT)
