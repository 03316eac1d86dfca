"""The built-in STT: pocketsphinx in a process of its own. English; it proves that the system works, no more."""

from __future__ import annotations

import itertools
import json

from echosight.engines.runtime.ipc import FrameType, IpcFrame
from echosight.engines.runtime.subprocess_pool import Channel, Pool
from echosight.engines.stt import STREAM_CLOSED
from echosight.errors import EngineFailure
from echosight.media import Transcript, Word
from echosight.settings import Settings

WINDOW_BYTES = 320_000
"""Ten seconds: where audio comes faster than it is decoded, `push` waits beyond that."""

CHUNK_BYTES = 32_768


class SphinxSTT:
    """An `STT`. A process decodes about six utterances in real time, on at most `decoders` decoders of 100 MB each."""

    name = "pocketsphinx"

    def __init__(self, processes: int = 1, decoders: int = 6) -> None:
        self.pool = Pool("echosight.engines.stt.sphinx_process", "pocketsphinx", processes, (str(decoders),))

    async def start(self) -> None:
        await self.pool.start()

    async def close(self) -> None:
        await self.pool.close()

    def open(self, language: str | None = None, speaker: str | None = None) -> SphinxStream:
        return SphinxStream(self.pool, speaker or "")


class SphinxStream:
    """An `STTStream`: one channel to a process, opened by the first `push`. `speaker` selects the acoustic mean."""

    def __init__(self, pool: Pool, speaker: str) -> None:
        self._pool = pool
        self._speaker = speaker
        self._channel: Channel | None = None
        self._closed = False
        self._request_ids = itertools.count()
        self._partial = ""
        self._reported = ""

    async def push(self, pcm: bytes) -> str | None:
        """Send the audio and return what the process has recognised by now, without waiting for this audio."""
        if pcm or self._closed:
            channel = await self._open_channel()
            for start in range(0, len(pcm), CHUNK_BYTES):
                await channel.push(pcm[start : start + CHUNK_BYTES])
        while self._channel is not None and (frame := self._channel.poll()):
            self._read(frame)
        if self._partial == self._reported:
            return None
        self._reported = self._partial
        return self._partial

    async def finalize(self) -> Transcript:
        """Decodes what is left, which takes some milliseconds. A `push` afterwards costs nothing extra."""
        if self._channel is None and not self._closed:
            return Transcript("")
        channel = await self._open_channel()
        request_id = str(next(self._request_ids))
        channel.send(FrameType.FINISH, request_id.encode())
        while True:
            frame = await channel.receive()
            self._read(frame)
            if frame.kind is FrameType.FINAL:
                final = json.loads(frame.payload)
                # The response to an earlier, cancelled `finalize` may come first.
                if final["request_id"] == request_id:
                    self._partial = self._reported = final["text"]
                    return Transcript(final["text"], tuple(Word(*word) for word in final["words"]), "en")

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    async def _open_channel(self) -> Channel:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)
        if self._channel is None:
            channel = await self._pool.open(WINDOW_BYTES, key=self._speaker)
            if self._closed:
                channel.close()
                raise EngineFailure(STREAM_CLOSED)
            channel.send(FrameType.BEGIN, json.dumps({"speaker": self._speaker}).encode())
            self._channel = channel
        return self._channel

    def _read(self, frame: IpcFrame) -> None:
        if frame.kind is FrameType.PARTIAL:
            self._partial = frame.payload.decode()


def make_stt(argument: str | None, settings: Settings) -> SphinxSTT:
    """There is one model, so `argument` is not used."""
    return SphinxSTT(settings.speech_workers)
