"""The embedded recogniser and voice, in their real processes."""

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
from echosight.engines.stt.sphinx import SphinxSTT
from echosight.engines.tts.espeak import AHEAD_BYTES, EspeakTTS
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
async def ears() -> AsyncGenerator[SphinxSTT]:
    ears = SphinxSTT()
    await ears.start()
    yield ears
    await ears.close()


@pytest.fixture
async def voice() -> AsyncGenerator[EspeakTTS]:
    voice = EspeakTTS()
    await voice.start()
    yield voice
    await voice.close()


def pieces_of(chunk: AudioChunk) -> list[bytes]:
    return [chunk.pcm[at : at + 640] for at in range(0, len(chunk.pcm), 640)]


async def understand(ears: SphinxSTT, chunk: AudioChunk, utterance: str = "u") -> Transcript:
    for pcm in pieces_of(chunk):
        await ears.hear(utterance, pcm)
    transcript = await ears.finish(utterance)
    await ears.forget(utterance)
    return transcript


def kill(pool: Pool) -> None:
    pid = pool.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


# --- hearing --------------------------------------------------------------------------------------


async def test_synthetic_speech_is_understood_with_partials_and_timed_words(ears: SphinxSTT, flite: Flite) -> None:
    speech = flite(GO)
    for pcm in pieces_of(speech):
        await ears.hear("u", pcm)
    transcript = await ears.finish("u")
    assert transcript.text == GO
    assert [transcript.text[: word.text_end].split()[-1] for word in transcript.words] == GO.split()
    times = [word.start_ms for word in transcript.words]
    assert times == sorted(times)
    assert times[-1] < speech.seconds * 1000


async def test_partial_texts_come_during_speech_and_once_each(ears: SphinxSTT, flite: Flite) -> None:
    partials: list[str] = []
    async with asyncio.timeout(30):
        while len(partials) < 3:  # as fast as the recogniser goes; the same speech over and over
            for pcm in pieces_of(flite(GO)):
                partials += [text] if (text := await ears.hear("u", pcm)) else []
    assert partials[0].startswith("one")
    assert all(text != after for text, after in itertools.pairwise(partials))


async def test_a_finished_utterance_goes_on_as_if_it_had_not_been_finished(ears: SphinxSTT, flite: Flite) -> None:
    straight = await understand(ears, flite(GO), "straight")
    for n, pcm in enumerate(pieces_of(flite(GO))):
        await ears.hear("halting", pcm)
        if n % 30 == 0:
            await ears.finish("halting")
    assert (await ears.finish("halting")).text == straight.text == GO


async def test_utterances_that_interleave_are_understood_as_if_alone(ears: SphinxSTT, flite: Flite) -> None:
    speech = {"a": flite(GO), "b": flite(TIME, "awb"), "c": flite(TIME)}
    alone = {name: await understand(ears, chunk, name) for name, chunk in speech.items()}
    queues = {name: pieces_of(chunk) for name, chunk in speech.items()}
    while any(queues.values()):
        for name, queue in queues.items():
            if queue:
                await ears.hear(name, queue.pop(0))
    together = await asyncio.gather(*(ears.finish(name) for name in speech))
    assert dict(zip(speech, together, strict=True)) == alone
    assert alone["a"].text != alone["b"].text


async def test_more_utterances_than_decoders_wait_for_their_turn(flite: Flite) -> None:
    ears = SphinxSTT(decoders=1)
    await ears.start()
    try:
        texts = await asyncio.gather(*(understand(ears, flite(GO), f"u{n}") for n in range(3)))
        assert [transcript.text for transcript in texts] == [GO] * 3
    finally:
        await ears.close()


async def test_a_silent_utterance_lends_its_decoder_and_keeps_what_it_understood(flite: Flite) -> None:
    ears = SphinxSTT(decoders=1)
    await ears.start()
    try:
        await ears.hear("first", flite(GO).pcm)
        before = await ears.finish("first")
        assert (await understand(ears, flite(TIME), "second")).text  # waits until the first counts as silent
        await ears.hear("first", flite(GO).pcm)
        after = await ears.finish("first")
        assert after.text.startswith(before.text)
        assert after.words[: len(before.words)] == before.words
        assert after.words[len(before.words)].start_ms >= int(flite(GO).seconds * 1000) - 32
    finally:
        await ears.close()


async def test_real_speech_is_understood(ears: SphinxSTT, speech_dir: Path) -> None:
    import soundfile

    for entry in json.loads((speech_dir / "manifest.json").read_text()):
        if "goforward" in entry["file"]:
            samples, rate = soundfile.read(speech_dir / entry["file"], dtype="int16")
            assert (await understand(ears, AudioChunk(samples.tobytes(), rate))).text == entry["transcript"]
            return
    pytest.skip("the recording is not there")


async def test_a_killed_recogniser_fails_the_utterance_and_understands_the_next(ears: SphinxSTT, flite: Flite) -> None:
    await ears.hear("u", flite(GO).pcm)
    finishing = asyncio.create_task(ears.finish("u"))
    await asyncio.sleep(0)
    kill(ears.pool)
    with pytest.raises(EngineFailure, match="died"):
        await finishing
    with pytest.raises(EngineFailure, match="died"):
        await ears.hear("u", flite(GO).pcm)
    await ears.forget("u")
    assert (await understand(ears, flite(GO), "next")).text == GO


async def test_what_was_not_heard_cannot_be_finished(ears: SphinxSTT) -> None:
    with pytest.raises(EngineFailure):
        await ears.finish("never")
    await ears.forget("never")


# --- speaking -------------------------------------------------------------------------------------


async def speak(voice: EspeakTTS, text: str, options: GenerateOptions = OPTIONS) -> tuple[int, list[Word]]:
    """Milliseconds of speech, and its words."""
    pieces = [piece async for piece in voice.synthesize(text, options)]
    samples = 0
    for piece in pieces:
        samples += len(piece.pcm) // 2
        assert all(word.start_ms <= samples * 1000 // voice.rate for word in piece.words)
    return samples * 1000 // voice.rate, [word for piece in pieces for word in piece.words]


async def test_words_are_timed_in_order_and_cover_the_text(voice: EspeakTTS) -> None:
    for text in (STORY.strip(), (STORY * 6).strip(), "你好，世界。今天天气很好。", "Hi"):
        ms, words = await speak(voice, text, GenerateOptions(language="zh" if "你" in text else None))
        assert words[0].start_ms < 100
        assert words[-1].start_ms < ms
        assert words[-1].text_end == len(text)
        for word, after in itertools.pairwise(words):
            assert word.start_ms <= after.start_ms
            assert word.text_end < after.text_end
            assert not text[word.text_end - 1].isspace()


async def test_nothing_to_say_is_no_speech(voice: EspeakTTS) -> None:
    assert (await speak(voice, ""))[1] == []
    assert (await speak(voice, "\0"))[1] == []


async def test_speed_voice_and_language_change_the_speech(voice: EspeakTTS) -> None:
    assert {"en-us", "de", "cmn"} <= set(voice.voices)
    plain, _ = await speak(voice, STORY)
    fast, _ = await speak(voice, STORY, GenerateOptions(speed=2.0))
    assert fast < 0.7 * plain
    german, _ = await speak(voice, STORY, GenerateOptions(language="de-DE"))
    assert abs(german - plain) > 100
    unknown, _ = await speak(voice, STORY, GenerateOptions(voice="nobody", language="xx"))
    assert abs(unknown - plain) < 100


async def test_a_reader_that_stops_holds_the_voice_back_and_no_other_reader(voice: EspeakTTS) -> None:
    long = STORY * 40
    async with aclosing(voice.synthesize(long, OPTIONS)) as slow:
        await anext(slow)
        assert (await speak(voice, STORY))[1]
        (channel,) = voice.pool.processes[0]._channels.values()
        waiting = [channel._frames.get_nowait() for _ in range(channel._frames.qsize())]
        assert 0 < sum(len(frame.payload) for frame in waiting if frame is not None) < AHEAD_BYTES + 10_000


async def test_speech_that_is_left_stops(voice: EspeakTTS) -> None:
    async with aclosing(voice.synthesize(STORY * 40, OPTIONS)) as speech:
        await anext(speech)
    assert voice.pool.processes[0].load == 0
    assert (await speak(voice, "And on we go."))[1]


async def test_a_killed_voice_fails_the_sentence_and_speaks_the_next(voice: EspeakTTS) -> None:
    with pytest.raises(EngineFailure, match="died"):
        async with aclosing(voice.synthesize(STORY * 40, OPTIONS)) as speech:
            await anext(speech)
            kill(voice.pool)
            async for _ in speech:
                pass
    assert (await speak(voice, STORY))[1]


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


async def test_a_process_that_hangs_is_ended_and_started_again(voice: EspeakTTS) -> None:
    """Stopped, it is alive for the system and says nothing: only who asks it finds out."""
    pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", check_s=0.5)
    await pool.start()
    voice.pool, idle = pool, voice.pool
    try:
        with pytest.raises(EngineFailure, match="died"):
            async with asyncio.timeout(20), aclosing(voice.synthesize(STORY * 40, OPTIONS)) as speech:
                await anext(speech)
                pid = pool.processes[0].pid
                assert pid
                os.kill(pid, signal.SIGSTOP)
                async for _ in speech:
                    pass
        assert (await speak(voice, STORY))[1]
        assert pool.processes[0].pid != pid
    finally:
        voice.pool = idle
        await pool.close()


@pytest.mark.parametrize("module", ["stt.sphinx", "tts.espeak"])
async def test_a_process_says_that_it_is_alive(module: str) -> None:
    pool = Pool(f"echosight.engines.{module}_process", module, arguments=("1",))
    await pool.start()
    try:
        channel = await pool.open()
        channel.send(FrameType.ALIVE)
        async with asyncio.timeout(20):
            assert (await channel.receive()).kind is FrameType.ALIVE
    finally:
        await pool.close()


async def test_requests_go_where_there_is_least_to_do() -> None:
    pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", 2)
    await pool.start()
    try:
        channels = [await pool.open(key="same") for _ in range(4)]
        assert [process.load for process in pool.processes] == [2, 2]
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


async def test_the_default_engine_hears_and_answers_and_remembers(flite: Flite) -> None:
    engine = load(Settings(speech_workers=1))
    assert isinstance(engine, Cascade)
    await engine.start()
    try:
        conversation = Conversation()
        answers = []
        for text in (GO, TIME):
            conversation.pending_turn = turn = UserTurn()
            for pcm in pieces_of(flite(text)):
                await engine.prefill(conversation, turn.add(AudioPart(pcm)))
            transcript = await engine.finalize_transcript(conversation, turn)
            assert transcript
            conversation.pending_turn = None
            conversation.add(turn.to_item(transcript.text))
            pieces = [piece async for piece in engine.generate(conversation, OPTIONS)]
            answers.append("".join(piece.text for piece in pieces if isinstance(piece, TextChunk)))
            words = [word for piece in pieces if isinstance(piece, SpeechChunk) for word in piece.words]
            assert words[-1].text_end == len(answers[-1].rstrip())
            assert pieces[-1].providers == ("pocketsphinx", "EchoSight demo", "espeak-ng")  # type: ignore[union-attr]
            assert isinstance(pieces[-1], GenerationSummary)
        assert answers[0].startswith(f"I heard: {GO}.")
        assert f"Before that you said: {GO}." in answers[1]
    finally:
        await engine.close()


def test_an_unknown_model_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="nobody/knows"):
        load(Settings(model="nobody/knows"))
