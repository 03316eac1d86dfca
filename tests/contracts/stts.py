"""The implementations of `STT` that the contract suite runs: add a line to `STTS` for a new one."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from echosight.audio.formats import decode_audio
from echosight.engines import STT
from echosight.engines.cascade.fallback import STTChain
from echosight.engines.cascade_parts import STTS as REGISTRY
from echosight.engines.stt.sphinx import SphinxSTT
from echosight.engines.stt.vosk import VoskSTT
from echosight.settings import Settings
from tests.contracts.harness import Folder, Running, plain
from tests.engines.deepgram_service import deepgram_service
from tests.engines.stt.vosk_stand_in import Recognizer
from tests.engines.upstream import Reply, Request, answer, upstream
from tests.fakes import ScriptedSTT

Case = AbstractAsyncContextManager[Running[STT]]


def vosk() -> STT:
    return VoskSTT("vosk", lambda: Recognizer)


def whisper(folder: Path) -> STT:
    from echosight.engines.stt.whisper import WhisperSTT
    from echosight.engines.stt.whisper_decoder import Decoder, HallucinationFilter
    from echosight.engines.stt.whisper_model import load_model

    # A random model's segments all look like hallucinations.
    no_filter = HallucinationFilter(no_speech=2, log_probability=-99, compression_ratio=999)
    return WhisperSTT("tiny", lambda: Decoder(load_model(str(folder)), no_filter))


@asynccontextmanager
async def openai() -> AsyncIterator[Running[STT]]:
    async def transcribe(request: Request, reply: Reply) -> None:
        if request.method == "GET":
            await answer({}, 405)(request, reply)
            return
        body = request.body[request.body.index(b"RIFF") :]
        # The WAV file is the form's last field.
        pcm = decode_audio(body[: body.rindex(b"\r\n--")]).pcm
        text = text_for(pcm)
        words = [{"word": word, "start": n} for n, word in enumerate(text.split())]
        await answer({"text": text, "language": "english", "words": words})(request, reply)

    async with upstream() as server:
        server.on("/v1/audio/transcriptions", transcribe)
        yield Running(REGISTRY.create("openai:tiny", Settings(whisper_url=f"{server.url}/v1")))


@asynccontextmanager
async def deepgram() -> AsyncIterator[Running[STT]]:
    async with deepgram_service() as service:
        service.final_text = text_for
        key = SecretStr("sesame")
        settings = Settings(deepgram_url=f"http://127.0.0.1:{service.port}", deepgram_api_key=key)
        yield Running(REGISTRY.create("deepgram", settings))


def text_for(pcm: bytes) -> str:
    return f"This is {zlib.crc32(pcm)}."


STTS: dict[str, Callable[[Folder], Case]] = {
    "sphinx": lambda _: plain(SphinxSTT()),
    "whisper": lambda folder: plain(whisper(folder("whisper"))),
    "whisper-embedded": lambda _: plain(REGISTRY.create("whisper:tiny.en", Settings())),
    "vosk": lambda _: plain(vosk()),
    "openai": lambda _: openai(),
    "deepgram": lambda _: deepgram(),
    "chain": lambda _: plain(STTChain([ScriptedSTT("broken", "push"), vosk()])),
    "scripted": lambda _: plain(ScriptedSTT()),
}
