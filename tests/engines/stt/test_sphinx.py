"""The built-in STT in its real process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from pathlib import Path

import pytest

from echosight.engines.runtime.subprocess_pool import Pool
from echosight.engines.stt.sphinx import WINDOW_BYTES, SphinxSTT
from echosight.errors import EngineFailure
from echosight.media import AudioChunk
from echosight.options import GenerateOptions
from tests.conftest import Flite
from tests.engines.speech_processes import GO, TIME, packets, push_all, transcribe

OPTIONS = GenerateOptions()


def kill(pool: Pool) -> None:
    pid = pool.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


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
