"""Pools of processes, and the default engine in its real processes."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.registry import load
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.subprocess_pool import Pool, Process
from echosight.engines.tts.espeak import EspeakTTS
from echosight.errors import EngineFailure, SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.conftest import Flite
from tests.engines.speech_processes import GO, STORY, TIME, packets

OPTIONS = GenerateOptions()


# --- processes ------------------------------------------------------------------------------------


async def test_a_process_that_does_not_start_says_why() -> None:
    process = Process("echosight.engines.there_is_none", "missing")
    with pytest.raises(SetupError, match=r"missing process does not start: .*there_is_none"):
        await process.start()
    await process.close()


async def test_a_closed_pool_leaves_no_process() -> None:
    pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", 2)
    await pool.start()
    pids = [process.pid for process in pool.processes]
    await pool.close()
    for pid in pids:
        assert pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(asyncio.all_tasks()) == 1


async def test_a_process_that_hangs_is_killed_and_restarted(tts: EspeakTTS) -> None:
    """A stopped process is alive for the operating system: only the missing replies to pings show that it hangs."""
    pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", ping_s=0.5)
    await pool.start()
    tts.pool, idle = pool, tts.pool
    try:
        with pytest.raises(EngineFailure, match="died"):
            async with asyncio.timeout(20), aclosing(tts.synthesize(STORY * 40, OPTIONS)) as speech:
                await anext(speech)
                pid = pool.processes[0].pid
                assert pid
                os.kill(pid, signal.SIGSTOP)
                async for _ in speech:
                    pass
        assert any([chunk.words async for chunk in tts.synthesize(STORY, OPTIONS)])
        assert pool.processes[0].pid != pid
    finally:
        tts.pool = idle
        await pool.close()


@pytest.mark.parametrize("module", ["stt.sphinx", "tts.espeak"])
async def test_a_process_replies_pings(module: str) -> None:
    pool = Pool(f"echosight.engines.{module}_process", module, arguments=("1",))
    await pool.start()
    try:
        channel = await pool.open()
        channel.send(FrameType.ALIVE)
        async with asyncio.timeout(20):
            assert (await channel.receive()).kind is FrameType.ALIVE
    finally:
        await pool.close()


async def test_a_request_goes_to_the_process_with_the_fewest_in_flight() -> None:
    pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", 2)
    await pool.start()
    try:
        channels = [await pool.open(key="same") for _ in range(4)]
        assert [process.in_flight for process in pool.processes] == [2, 2]
        for channel in channels:
            channel.close()
    finally:
        await pool.close()


def test_a_killed_server_takes_its_processes_along() -> None:
    server = textwrap.dedent("""
        import asyncio
        from echosight.engines.runtime.subprocess_pool import Pool

        async def main():
            pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", 2)
            await pool.start()
            print(*(process.pid for process in pool.processes), flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        endings = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        for ending in endings:
            # Readable when the process has ended.
            assert select.select([ending], [], [], 20)[0]
            os.close(ending)


# --- the default engine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "providers", "spoken", "transcript_text"),
    [
        ({}, ("whisper tiny.en", "EchoSight demo", "hibari"), "please open the window", "Please open the window"),
        ({"stt": "sphinx", "tts": "espeak"}, ("pocketsphinx", "EchoSight demo", "espeak-ng"), GO, GO),
    ],
)
async def test_the_default_engine_transcribes_and_replies_and_remembers(
    flite: Flite, parts: dict[str, str], providers: tuple[str, ...], spoken: str, transcript_text: str
) -> None:
    engine = load(Settings(speech_workers=1, **parts))  # type: ignore[arg-type]
    assert isinstance(engine, Cascade)
    await engine.start()
    try:
        conversation = Conversation()
        replies = []
        for text in (spoken, TIME):
            conversation.pending_turn = turn = UserTurn()
            for pcm in packets(flite(text)):
                await engine.prefill(conversation, turn.add(AudioPart(pcm)))
            transcript = await engine.finalize_transcript(conversation, turn)
            assert transcript
            conversation.pending_turn = None
            conversation.add(turn.to_item(transcript.text))
            chunks = [chunk async for chunk in engine.generate(conversation, OPTIONS)]
            replies.append("".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)))
            words = [word for chunk in chunks if isinstance(chunk, SpeechChunk) for word in chunk.words]
            assert words[-1].text_end == len(replies[-1].rstrip())
            assert chunks[-1].providers == providers  # type: ignore[union-attr]
            assert isinstance(chunks[-1], GenerationSummary)
        assert replies[0].startswith(f"I heard: {transcript_text}.")
        assert f"Before that you said: {transcript_text}." in replies[1]
    finally:
        await engine.close()


def test_an_unknown_model_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="nobody/knows"):
        load(Settings(model="nobody/knows"))
