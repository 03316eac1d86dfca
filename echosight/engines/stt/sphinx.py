"""The embedded transcriber: pocketsphinx in a process of its own. English; a proof of life, not a dictation machine."""

from __future__ import annotations

import itertools
import json

from echosight.engines.runtime.ipc import FrameType, IpcFrame
from echosight.engines.runtime.subprocess_pool import Channel, Pool
from echosight.errors import EngineFailure
from echosight.media import Transcript, Word
from echosight.settings import Settings

WINDOW_BYTES = 320_000
"""Ten seconds: an utterance that comes faster than it is decoded waits beyond that."""

PIECE_BYTES = 32_768


class _Utterance:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.questions = itertools.count()
        self.partial = ""

    def read(self, frame: IpcFrame) -> None:
        if frame.kind is FrameType.PARTIAL:
            self.partial = frame.payload.decode()


class SphinxSTT:
    """A `STT`. A process follows some six speakers at a time, on at most `decoders` decoders of 100 MB each."""

    name = "pocketsphinx"

    def __init__(self, processes: int = 1, decoders: int = 6) -> None:
        self.pool = Pool("echosight.engines.stt.sphinx_process", "pocketsphinx", processes, (str(decoders),))
        self._utterances: dict[str, _Utterance] = {}

    async def start(self) -> None:
        await self.pool.start()

    async def close(self) -> None:
        self._utterances.clear()
        await self.pool.close()

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """Send it on; what comes back is what is known by now. Raises EngineFailure."""
        said = self._utterances.get(utterance) or await self._begin(utterance, speaker or "")
        known = said.partial
        for at in range(0, len(pcm), PIECE_BYTES):
            await said.channel.push(pcm[at : at + PIECE_BYTES])
        while frame := said.channel.news():
            said.read(frame)
        return said.partial if said.partial != known else None

    async def finish(self, utterance: str) -> Transcript:
        """Costs what is left to decode, some ms; hearing more afterwards costs nothing extra. Raises EngineFailure."""
        said = self._utterances.get(utterance)
        if said is None:
            raise EngineFailure("The transcriber heard nothing of this turn")
        question = str(next(said.questions))
        said.channel.send(FrameType.FINISH, question.encode())
        while True:
            frame = await said.channel.receive()
            said.read(frame)
            if frame.kind is FrameType.FINAL:
                answer = json.loads(frame.payload)
                # An earlier, abandoned `finish` may still be answered.
                if answer["asked"] == question:
                    said.partial = answer["text"]
                    return Transcript(answer["text"], tuple(Word(*w) for w in answer["words"]), "en")

    async def forget(self, utterance: str) -> None:
        if said := self._utterances.pop(utterance, None):
            said.channel.close()

    async def _begin(self, utterance: str, speaker: str) -> _Utterance:
        channel = await self.pool.open(WINDOW_BYTES, key=speaker)
        channel.send(FrameType.BEGIN, json.dumps({"speaker": speaker}).encode())
        self._utterances[utterance] = said = _Utterance(channel)
        return said


def transcriber(argument: str | None, settings: Settings) -> SphinxSTT:
    """It has one model, so there is no argument."""
    return SphinxSTT(settings.speech_workers)
