"""The implementations of `Engine` that the contract suite runs: add a line to `ENGINES` for a new one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from echosight.engines import Engine, TextChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.llm.echo import EchoLLM
from echosight.engines.minicpmo.engine import MODULE, MiniCpmEngine
from echosight.engines.stt.sphinx import SphinxSTT
from echosight.engines.stub import StubEngine
from echosight.engines.tts.espeak import EspeakTTS
from echosight.media import AudioChunk
from echosight.options import GenerateOptions
from tests.contracts.harness import Folder, Running, count_forward_calls, plain
from tests.fakes import ScriptedEngine, ScriptedLLM, ScriptedSTT, ScriptedTTS, words

Case = AbstractAsyncContextManager[Running[Engine]]

SENTENCE = "The rain had stopped, and many people went to the café at once. "


@asynccontextmanager
async def scripted_cascade() -> AsyncIterator[Running[Engine]]:
    llm, tts = ScriptedLLM(*(TextChunk(SENTENCE) for _ in range(200))), ScriptedTTS()
    yield Running(Cascade(ScriptedSTT(), llm, tts), lambda: llm.steps + tts.steps, incremental=True)


@asynccontextmanager
async def scripted() -> AsyncIterator[Running[Engine]]:
    engine = ScriptedEngine([words(SENTENCE.strip())])
    yield Running(engine, lambda: engine.steps, incremental=True)


@asynccontextmanager
async def omni(folder: Path) -> AsyncIterator[Running[Engine]]:
    from echosight.engines.omni.load import load

    engine = load(str(folder), device="cpu", capacity=2, context=1024, seed=5)
    build = engine._build

    def build_endless() -> Any:
        runner = build()
        # Random weights would end replies at any length.
        runner.model.text_stop_tokens = runner.model.codec_stop_tokens = frozenset()
        runner.model.limits = replace(runner.model.limits, speech_frames=40)
        return runner

    engine._build = build_endless
    with count_forward_calls() as calls:
        yield Running(engine, calls, incremental=True, options=GenerateOptions(max_output_tokens=6))


def minicpmo(version: str) -> Case:
    command = (sys.executable, "-m", MODULE, ".", f"tests.engines.minicpmo.standin:load{version}")
    sample = AudioChunk(bytes(24_000), 8_000)
    return plain(MiniCpmEngine("stand-in", [command] * 2), GenerateOptions(voice_sample=sample))


ENGINES: dict[str, Callable[[Folder], Case]] = {
    "default": lambda _: plain(Cascade(SphinxSTT(), EchoLLM(), EspeakTTS())),
    "cascade": lambda _: scripted_cascade(),
    "qwen2.5-omni": lambda folder: omni(folder("qwen2_5")),
    "qwen3-omni": lambda folder: omni(folder("qwen3")),
    "minicpm-o-2.6": lambda _: minicpmo("26"),
    "minicpm-o-4.5": lambda _: minicpmo("45"),
    "stub": lambda _: plain(StubEngine()),
    "scripted": lambda _: scripted(),
}
