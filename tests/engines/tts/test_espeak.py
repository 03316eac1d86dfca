"""The built-in TTS in its real process."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import aclosing

import pytest

from echosight.engines.runtime.subprocess_pool import Pool
from echosight.engines.tts.espeak import CREDIT_BYTES, EspeakTTS
from echosight.errors import EngineFailure
from echosight.media import Word
from echosight.options import GenerateOptions
from tests.engines.speech_processes import STORY

OPTIONS = GenerateOptions()


def kill(pool: Pool) -> None:
    pid = pool.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


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
