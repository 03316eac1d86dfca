"""The recogniser's own process: pocketsphinx holds Python's lock while it decodes, so it may not live in the server."""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from typing import Any

from echosight.engines.runtime.ipc import FrameType, IpcFrame, WorkerPipe
from echosight.media import INPUT_SAMPLE_RATE

STEP_BYTES = 1024
"""32 ms: what is decoded between two looks at the pipe."""

ACK_BYTES = 16 * STEP_BYTES
LONGEST_S = 60
"""A decoder's memory grows with its utterance, so a longer one is recognised in parts."""

IDLE_S = 2.0
"""An utterance that heard nothing for so long lends its decoder to one that waits."""

CMN = "52.57,5.77,-0.68,8.20,-5.97,1.57,-9.39,-4.24,-0.86,-3.83,2.23,-1.79,0.94"
"""Mean cepstrum to begin an unknown speaker with: the median over 25 recordings. It takes the word error
rate of first utterances from .47 (the model's own start value) to .39."""

SPEAKERS = 256


class Utterance:
    """One utterance: what waits to be decoded, and what was understood."""

    def __init__(self, channel: int, speaker: str) -> None:
        self.channel = channel
        self.speaker = speaker
        self.decoder: Any = None
        self.pending = bytearray()
        self.decoded = 0
        self.finish: bytes | None = None
        self.unacknowledged = 0
        self.partial = ""
        self.active_at = time.monotonic()
        self._before: list[tuple[int, str]] = []
        self._begun_ms = 0

    @property
    def runnable(self) -> bool:
        return len(self.pending) >= STEP_BYTES or self.finish is not None

    def begin(self, decoder: Any, cmn: str) -> None:
        # Nothing of the utterance that it decoded before may colour this one.
        decoder.reinit_feat()
        decoder.set_cmn(cmn)
        decoder.start_utt()
        self.decoder = decoder
        self._begun_ms = self.decoded * 500 // INPUT_SAMPLE_RATE

    def step(self) -> None:
        """Decode 32 ms, or the rest where the utterance is to be finished."""
        piece = bytes(self.pending[:STEP_BYTES])
        if len(piece) < STEP_BYTES and self.finish is None:
            return
        del self.pending[:STEP_BYTES]
        if piece:
            self.decoder.process_raw(piece, False, False)
            self.decoded += len(piece)
            self.unacknowledged += len(piece)

    def words(self) -> list[tuple[int, str]]:
        """(milliseconds, word) of everything so far. The utterance need not be ended for it, so it can go on."""
        if self.decoder is None or self.decoder.hyp() is None:
            return self._before
        heard = ((s.start_frame * 10 + self._begun_ms, s.word) for s in self.decoder.seg())
        return self._before + [(ms, word.partition("(")[0]) for ms, word in heard if word[0] not in "<[+"]

    def text(self) -> str:
        hypothesis = self.decoder.hyp() if self.decoder else None
        words = [word for _, word in self._before]
        return " ".join([*words, hypothesis.hypstr] if hypothesis and hypothesis.hypstr else words)

    def suspend(self) -> Any:
        """Keep what was understood and give the decoder back."""
        self._before = self.words()
        decoder, self.decoder = self.decoder, None
        decoder.end_utt()
        return decoder


class Recogniser:
    """Many utterances on a few decoders, 32 ms of the one with the shortest backlog at a time."""

    def __init__(self, pipe: WorkerPipe, most_decoders: int) -> None:
        self._pipe = pipe
        self._utterances: dict[int, Utterance] = {}
        self._free = [_decoder()]
        self._more = most_decoders - 1
        self._cmn: OrderedDict[str, str] = OrderedDict()

    def run(self) -> None:
        self._pipe.send(FrameType.READY, 0)
        while True:
            runnable = [u for u in self._utterances.values() if u.runnable]
            able = [u for u in runnable if u.decoder or self._equip(u)]
            for frame in self._pipe.take(0 if able else IDLE_S if runnable else None):
                self._receive(frame)
            if able:
                self._advance(min(able, key=lambda u: len(u.pending)))

    def _receive(self, frame: IpcFrame) -> None:
        if frame.kind is FrameType.BEGIN:
            self._utterances[frame.channel] = Utterance(frame.channel, json.loads(frame.payload)["speaker"])
        elif utterance := self._utterances.get(frame.channel):
            utterance.active_at = time.monotonic()
            match frame.kind:
                case FrameType.AUDIO:
                    utterance.pending += frame.payload
                case FrameType.FINISH:
                    utterance.finish = frame.payload
                case FrameType.END:
                    del self._utterances[frame.channel]
                    self._release(utterance)

    def _advance(self, utterance: Utterance) -> None:
        if utterance.channel not in self._utterances or utterance.decoder is None:
            return
        utterance.step()
        if utterance.finish is not None and not utterance.pending:
            self._conclude(utterance)
        elif (text := utterance.text()) != utterance.partial:
            utterance.partial = text
            self._pipe.send(FrameType.PARTIAL, utterance.channel, text.encode())
        if utterance.unacknowledged >= ACK_BYTES:
            self._pipe.send(FrameType.CREDIT, utterance.channel, utterance.unacknowledged.to_bytes(4, "little"))
            utterance.unacknowledged = 0
        if utterance.decoded // (2 * INPUT_SAMPLE_RATE) >= LONGEST_S:
            self._release(utterance)

    def _conclude(self, utterance: Utterance) -> None:
        words = utterance.words()
        text, ends = "", []
        for ms, word in words:
            text += f" {word}" if text else word
            ends.append((ms, len(text)))
        asked = (utterance.finish or b"").decode()
        utterance.finish = None
        utterance.partial = text
        answer = json.dumps({"asked": asked, "text": text, "words": ends})
        self._pipe.send(FrameType.FINAL, utterance.channel, answer.encode())

    def _equip(self, utterance: Utterance) -> bool:
        """Find it a decoder: a free one, a new one, or that of an utterance which has fallen silent."""
        if not self._free and self._more > 0:
            self._more -= 1
            self._free.append(_decoder())
            self._pipe.send(FrameType.ALIVE, 0)  # it took long, and several may be made in a row
        if not self._free:
            long_ago = time.monotonic() - IDLE_S
            idle = [u for u in self._utterances.values() if u.decoder and not u.runnable and u.active_at < long_ago]
            if not idle:
                return False
            self._release(min(idle, key=lambda u: u.active_at))
        utterance.begin(self._free.pop(), self._cmn.get(utterance.speaker, CMN))
        return True

    def _release(self, utterance: Utterance) -> None:
        """Take its decoder, and with it what was learnt about the speaker's sound."""
        if utterance.decoder is None:
            return
        decoder = utterance.suspend()
        self._free.append(decoder)
        if utterance.speaker:
            self._cmn[utterance.speaker] = decoder.get_cmn(True)
            self._cmn.move_to_end(utterance.speaker)
            if len(self._cmn) > SPEAKERS:
                self._cmn.popitem(last=False)


def _decoder() -> Any:
    from pocketsphinx import Decoder

    # The two later passes would cost 100 ms at the end of a turn (800 at worst) and gain one point of word error rate.
    # Following 4000 states a frame instead of 30,000 costs nothing measurable and saves 40 % of the time.
    decoder = Decoder(samprate=INPUT_SAMPLE_RATE, loglevel="FATAL", fwdflat=False, bestpath=False, maxhmmpf=4000)
    # A decoder's first utterance scores a little differently from all later ones.
    decoder.start_utt()
    decoder.process_raw(bytes(INPUT_SAMPLE_RATE // 5), False, False)
    decoder.end_utt()
    return decoder


if __name__ == "__main__":
    Recogniser(WorkerPipe(), most_decoders=int(sys.argv[1])).run()
