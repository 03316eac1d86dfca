"""What tests of the built-in speech processes share."""

from __future__ import annotations

from echosight.engines.stt.sphinx import SphinxStream, SphinxSTT
from echosight.media import AudioChunk, Transcript

GO = "one two three four five"
TIME = "what time is it in london"
STORY = "The rain had stopped, and 3.5 million people (all of them!) went to café Größe — at once. "


def packets(speech: AudioChunk) -> list[bytes]:
    """Chunks of 20 ms."""
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
