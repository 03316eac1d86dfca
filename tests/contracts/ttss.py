"""The implementations of `TTS` that the contract suite runs: add a line to `TTSS` for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from echosight.audio.formats import wav_bytes
from echosight.engines import TTS
from echosight.engines.cascade.fallback import TTSChain
from echosight.engines.cascade_parts import TTSS as REGISTRY
from echosight.engines.tts.espeak import EspeakTTS
from echosight.engines.tts.local import LocalTTS
from echosight.engines.tts.pyttsx3 import SystemVoiceModel
from echosight.media import AudioChunk
from echosight.settings import Settings
from tests.contracts.harness import Folder, Running, count_forward_calls, plain
from tests.engines.tts.stand_ins import System, write_piper_program
from tests.engines.upstream import Reply, Request, answer, upstream
from tests.fakes import ScriptedTTS

Case = AbstractAsyncContextManager[Running[TTS]]


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
    "hibari": lambda _: plain(REGISTRY.create("hibari", Settings())),
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
