"""The contract of `TTS`, for every implementation: add a line to `TTSS` for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from echosight.audio.formats import wav_bytes
from echosight.engines import TTS, SpeechChunk
from echosight.engines.cascade.fallback import TTSChain
from echosight.engines.cascade_parts import TTSS as REGISTRY
from echosight.engines.tts.espeak import EspeakTTS
from echosight.engines.tts.local import LocalTTS
from echosight.engines.tts.pyttsx3 import SystemVoiceModel
from echosight.errors import EngineFailure
from echosight.media import AudioChunk, Word, pcm_ms
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.contracts.harness import (
    UNKNOWN_LANGUAGE,
    Running,
    cancel_after_first,
    check_words,
    count_forward_calls,
    no_task_left,
    read_first,
    require,
    started,
    until_stopped,
)
from tests.engines.tts.stand_ins import System, write_piper_program
from tests.engines.upstream import Reply, Request, answer, upstream
from tests.fakes import ScriptedTTS

Folder = Callable[[str], Path]
Case = AbstractAsyncContextManager[Running[TTS]]

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Hello, how are you today? It's 5 o'clock."
OTHER = "Certainly not before the rain has stopped!"
LONG = "The rain had stopped, and many people went to the café at once, all of them. " * 4
PLAIN = GenerateOptions()


# --- implementations ------------------------------------------------------------------------------


@asynccontextmanager
async def plain(tts: TTS) -> AsyncIterator[Running[TTS]]:
    yield Running(tts)


@asynccontextmanager
async def espeak() -> AsyncIterator[Running[TTS]]:
    tts = EspeakTTS()
    yield Running(tts, lambda: tts.pool.processes[0]._frames_received, incremental=True)


@asynccontextmanager
async def vits(folder: Path) -> AsyncIterator[Running[TTS]]:
    with count_forward_calls() as calls:
        yield Running(REGISTRY.create(f"vits:{folder}", Settings(device="cpu")), calls)


@asynccontextmanager
async def server(path: str, create: Callable[[str], TTS]) -> AsyncIterator[Running[TTS]]:
    """Speech of 60 ms per character at 24 kHz, in chunks of 100 ms, as a WAV file or raw PCM."""
    chunks = 0

    async def speak(request: Request, reply: Reply) -> None:
        nonlocal chunks
        if request.method == "GET":
            await answer({}, 405)(request, reply)
            return
        text = request.json.get("input") or request.json.get("text")
        pcm = bytes([1, len(text) % 256]) * (24 * 60 * len(text))
        if request.query:
            await reply.head(Content_Type="audio/l16;rate=24000")
        else:
            await reply.head(Content_Type="audio/wav")
            pcm = wav_bytes(AudioChunk(pcm, 24_000))
        for start in range(0, len(pcm), 4800):
            chunks += 1
            await reply.write(pcm[start : start + 4800])
            # Without it, the kernel would take the speech as fast as it is written.
            await asyncio.sleep(0.002)
        await reply.end()

    async with upstream() as running:
        running.on(path, speak)
        yield Running(create(running.url), lambda: chunks, incremental=True)


def deepgram(url: str) -> TTS:
    return REGISTRY.create("deepgram", Settings(deepgram_url=url, deepgram_api_key=SecretStr("sesame")))


def piper_program(folder: Path) -> TTS:
    program, model = write_piper_program(folder)
    return REGISTRY.create(f"piper:{model}", Settings(piper_exe_path=str(program)))


@asynccontextmanager
async def scripted(**kwargs: Any) -> AsyncIterator[Running[TTS]]:
    tts = ScriptedTTS(**kwargs)
    yield Running(tts, lambda: tts.steps, incremental=True)


TTSS: dict[str, Callable[[Folder], Case]] = {
    "espeak": lambda _: espeak(),
    "vits": lambda folder: vits(folder("vits")),
    "kokoro": lambda folder: plain(REGISTRY.create(f"kokoro:{folder('kokoro')}", Settings())),
    "kokoro-untimed": lambda folder: plain(REGISTRY.create(f"kokoro:{folder('kokoro-untimed')}", Settings())),
    "piper": lambda folder: plain(REGISTRY.create(f"piper:{folder('piper')}", Settings())),
    "piper-program": lambda folder: plain(piper_program(folder("piper-program"))),
    "pyttsx3": lambda _: plain(LocalTTS("pyttsx3", lambda: SystemVoiceModel(System()), 22_050)),
    "openai": lambda _: server(
        "/v1/audio/speech", lambda url: REGISTRY.create("openai", Settings(tts_api_url=f"{url}/v1"))
    ),
    "deepgram": lambda _: server("/v1/speak", deepgram),
    "chain": lambda _: plain(TTSChain([ScriptedTTS("broken", "at the first chunk", rate=16_000), EspeakTTS()])),
    "scripted": lambda _: scripted(),
    "scripted-untimed": lambda _: scripted(timed=False),
}


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
