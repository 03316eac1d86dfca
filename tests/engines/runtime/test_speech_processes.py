"""The built-in STT and TTS, in their real processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.registry import load
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.subprocess_pool import Pool, Process
from echosight.engines.stt.sphinx import WINDOW_BYTES, SphinxStream, SphinxSTT
from echosight.engines.tts.espeak import CREDIT_BYTES, EspeakTTS
from echosight.errors import EngineFailure, SetupError
from echosight.media import AudioChunk, Transcript, Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.conftest import Flite

OPTIONS = GenerateOptions()
GO = "one two three four five"
TIME = "what time is it in london"
STORY = "The rain had stopped, and 3.5 million people (all of them!) went to café Größe — at once. "


@pytest.fixture
async def stt() -> AsyncGenerator[SphinxSTT]:
    stt = SphinxSTT()
    await stt.start()
    yield stt
    await stt.close()


@pytest.fixture
async def tts() -> AsyncGenerator[EspeakTTS]:
    tts = EspeakTTS()
    await tts.start()
    yield tts
    await tts.close()


def packets(speech: AudioChunk) -> list[bytes]:
    return [speech.pcm[start : start + 640] for start in range(0, len(speech.pcm), 640)]


async def push_all(stream: SphinxStream, speech: AudioChunk) -> None:
    for pcm in packets(speech):
        await stream.push(pcm)


async def transcribe(stt: SphinxSTT, speech: AudioChunk) -> Transcript:
    stream = stt.open()
    await push_all(stream, speech)
    transcript = await stream.finalize()
    await stream.close()
    return transcript


def kill(pool: Pool) -> None:
    pid = pool.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


# --- STT ------------------------------------------------------------------------------------------


async def test_synthetic_speech_is_recognised_with_timed_words(stt: SphinxSTT, flite: Flite) -> None:
    speech = flite(GO)
    transcript = await transcribe(stt, speech)
    assert transcript.text == GO
    assert [transcript.text[: word.text_end].split()[-1] for word in transcript.words] == GO.split()
    times = [word.start_ms for word in transcript.words]
    assert times == sorted(times)
    assert times[-1] < speech.seconds * 1000


async def test_partial_texts_come_during_speech_and_once_each(stt: SphinxSTT, flite: Flite) -> None:
    partials: list[str] = []
    stream = stt.open()
    async with asyncio.timeout(30):
        while len(partials) < 3:  # as fast as the recogniser goes; the same speech over and over
            for pcm in packets(flite(GO)):
                partials += [text] if (text := await stream.push(pcm)) else []
    assert partials[0].startswith("one")
    assert all(text != after for text, after in itertools.pairwise(partials))


async def test_early_finalizes_do_not_change_the_later_transcript(stt: SphinxSTT, flite: Flite) -> None:
    straight = await transcribe(stt, flite(GO))
    halting = stt.open()
    for n, pcm in enumerate(packets(flite(GO))):
        await halting.push(pcm)
        if n % 30 == 0:
            await halting.finalize()
    assert (await halting.finalize()).text == straight.text == GO


async def test_streams_that_interleave_give_the_same_as_alone(stt: SphinxSTT, flite: Flite) -> None:
    speeches = [flite(GO), flite(TIME, "awb"), flite(TIME)]
    alone = [await transcribe(stt, speech) for speech in speeches]
    streams = [stt.open() for _ in speeches]
    for pcms in itertools.zip_longest(*map(packets, speeches), fillvalue=b""):
        for stream, pcm in zip(streams, pcms, strict=True):
            await stream.push(pcm)
    assert await asyncio.gather(*(stream.finalize() for stream in streams)) == alone
    assert alone[0].text != alone[1].text


async def test_more_streams_than_decoders_wait_for_their_turn(flite: Flite) -> None:
    stt = SphinxSTT(decoders=1)
    await stt.start()
    try:
        transcripts = await asyncio.gather(*(transcribe(stt, flite(GO)) for _ in range(3)))
        assert [transcript.text for transcript in transcripts] == [GO] * 3
    finally:
        await stt.close()


async def test_an_idle_stream_gives_its_decoder_away_and_keeps_its_words(flite: Flite) -> None:
    stt = SphinxSTT(decoders=1)
    await stt.start()
    try:
        first = stt.open()
        await first.push(flite(GO).pcm)
        before = await first.finalize()
        assert (await transcribe(stt, flite(TIME))).text  # waits until the first counts as idle
        await first.push(flite(GO).pcm)
        after = await first.finalize()
        assert after.text.startswith(before.text)
        assert after.words[: len(before.words)] == before.words
        assert after.words[len(before.words)].start_ms >= int(flite(GO).seconds * 1000) - 32
    finally:
        await stt.close()


async def test_real_speech_is_recognised(stt: SphinxSTT, speech_dir: Path) -> None:
    import soundfile

    for entry in json.loads((speech_dir / "manifest.json").read_text()):
        if "goforward" in entry["file"]:
            samples, rate = soundfile.read(speech_dir / entry["file"], dtype="int16")
            assert (await transcribe(stt, AudioChunk(samples.tobytes(), rate))).text == entry["transcript"]
            return
    pytest.skip("the recording is not there")


async def test_a_killed_recogniser_fails_its_streams_and_serves_the_next(stt: SphinxSTT, flite: Flite) -> None:
    stream = stt.open()
    await stream.push(flite(GO).pcm)
    finalizing = asyncio.create_task(stream.finalize())
    await asyncio.sleep(0)
    kill(stt.pool)
    with pytest.raises(EngineFailure, match="died"):
        await finalizing
    with pytest.raises(EngineFailure, match="died"):
        await stream.push(flite(GO).pcm)
    await stream.close()
    assert (await transcribe(stt, flite(GO))).text == GO


async def test_a_stream_that_waits_for_the_process_ends_when_it_is_closed(stt: SphinxSTT, flite: Flite) -> None:
    stream = stt.open()
    pid = stt.pool.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        pushing = asyncio.create_task(push_all(stream, AudioChunk(bytes(2 * WINDOW_BYTES))))
        while stream._channel is None or stream._channel._credit > 0:
            await asyncio.sleep(0)
        await stream.close()
        with pytest.raises(EngineFailure, match="closed"):
            await pushing
    finally:
        os.kill(pid, signal.SIGCONT)


# --- TTS ------------------------------------------------------------------------------------------


async def speak(tts: EspeakTTS, text: str, options: GenerateOptions = OPTIONS) -> tuple[int, list[Word]]:
    """Milliseconds of speech, and its words."""
    chunks = [chunk async for chunk in tts.synthesize(text, options)]
    samples = 0
    for chunk in chunks:
        samples += len(chunk.pcm) // 2
        assert all(word.start_ms <= samples * 1000 // tts.rate for word in chunk.words)
    return samples * 1000 // tts.rate, [word for chunk in chunks for word in chunk.words]


async def test_words_are_timed_in_order_and_cover_the_text(tts: EspeakTTS) -> None:
    for text in (STORY.strip(), (STORY * 6).strip(), "你好，世界。今天天气很好。", "Hi"):
        ms, words = await speak(tts, text, GenerateOptions(language="zh" if "你" in text else None))
        assert words[0].start_ms < 100
        assert words[-1].start_ms < ms
        assert words[-1].text_end == len(text)
        for word, after in itertools.pairwise(words):
            assert word.start_ms <= after.start_ms
            assert word.text_end < after.text_end
            assert not text[word.text_end - 1].isspace()


async def test_an_empty_text_has_no_words(tts: EspeakTTS) -> None:
    assert (await speak(tts, ""))[1] == []
    assert (await speak(tts, "\0"))[1] == []


async def test_speed_voice_and_language_change_the_speech(tts: EspeakTTS) -> None:
    assert {"en-us", "de", "cmn"} <= set(tts.voices)
    plain, _ = await speak(tts, STORY)
    fast, _ = await speak(tts, STORY, GenerateOptions(speed=2.0))
    assert fast < 0.7 * plain
    german, _ = await speak(tts, STORY, GenerateOptions(language="de-DE"))
    assert abs(german - plain) > 100
    unknown, _ = await speak(tts, STORY, GenerateOptions(voice="unknown", language="xx"))
    assert abs(unknown - plain) < 100


async def test_a_reader_that_stops_holds_back_its_own_speech_only(tts: EspeakTTS) -> None:
    long = STORY * 40
    async with aclosing(tts.synthesize(long, OPTIONS)) as slow:
        await anext(slow)
        assert (await speak(tts, STORY))[1]
        (channel,) = tts.pool.processes[0]._channels.values()
        waiting = [channel._frames.get_nowait() for _ in range(channel._frames.qsize())]
        assert 0 < sum(len(frame.payload) for frame in waiting if frame is not None) < CREDIT_BYTES + 10_000


async def test_closing_the_generator_stops_the_synthesis(tts: EspeakTTS) -> None:
    async with aclosing(tts.synthesize(STORY * 40, OPTIONS)) as speech:
        await anext(speech)
    assert tts.pool.processes[0].in_flight == 0
    assert (await speak(tts, "And on we go."))[1]


async def test_a_killed_tts_fails_the_sentence_and_speaks_the_next(tts: EspeakTTS) -> None:
    with pytest.raises(EngineFailure, match="died"):
        async with aclosing(tts.synthesize(STORY * 40, OPTIONS)) as speech:
            await anext(speech)
            kill(tts.pool)
            async for _ in speech:
                pass
    assert (await speak(tts, STORY))[1]


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
        assert (await speak(tts, STORY))[1]
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


# --- all of it ------------------------------------------------------------------------------------


async def test_the_default_engine_transcribes_and_replies_and_remembers(flite: Flite) -> None:
    engine = load(Settings(speech_workers=1))
    assert isinstance(engine, Cascade)
    await engine.start()
    try:
        conversation = Conversation()
        replies = []
        for text in (GO, TIME):
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
            assert chunks[-1].providers == ("pocketsphinx", "EchoSight demo", "espeak-ng")  # type: ignore[union-attr]
            assert isinstance(chunks[-1], GenerationSummary)
        assert replies[0].startswith(f"I heard: {GO}.")
        assert f"Before that you said: {GO}." in replies[1]
    finally:
        await engine.close()


def test_an_unknown_model_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="nobody/knows"):
        load(Settings(model="nobody/knows"))
