"""hibari as a TTS: an English voice of 8 MB that comes with its package and speaks far faster than real time.

hibari-tts (Apache-2.0) names no public source for its weights other than the package itself, so the sha256 below is
that of the package's file. The model gives the duration of every phoneme, so words are timed by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from echosight.audio.pcm import float_to_pcm
from echosight.engines import SpeechChunk
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.weights import check_sha256
from echosight.engines.tts.local import LocalTTS, split_into_chunks
from echosight.engines.tts.word_timing import spoken_words
from echosight.errors import SetupError
from echosight.media import Word, pcm_ms
from echosight.options import GenerateOptions
from echosight.settings import Settings

VOICE = "heart"
SHA256 = "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8"
DURATIONS = b"/Clip_output_0"
"""The graph's tensor of durations: one per id, in frames of `FRAME_SAMPLES`."""
FRAME_SAMPLES = 600

GAIN = 1.6
"""4 dB: the voice's speech is at -24 dBFS, that of the other voices at -20."""
AUDIBLE = 0.01
"""Samples below it are silence. The model begins with 0.3 s and ends with 0.5 s of it."""
LEAD_SAMPLES = 480
TAIL_SAMPLES = 4_800
"""0.2 s after a sentence, where nothing else makes a pause before the next one."""


class HibariModel:
    """A `LocalModel`. `run` computes (samples, durations in frames) of phoneme ids at a speed."""

    rate = 24_000
    voices: tuple[str, ...] = (VOICE,)

    def __init__(
        self, tts: Any, run: Callable[[list[int], float], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    ) -> None:
        self._tts = tts
        self._run = run

    def synthesize(self, text: str, options: GenerateOptions) -> Generator[SpeechChunk, None, None]:
        """Each step computes a sentence of at most 400 phonemes."""
        speed = min(max(options.speed, 0.5), 2.0)
        end = spoken_ms = 0
        for sentence in self._tts.split_sentences(text):
            start = text.index(sentence, end)
            end = start + len(sentence)
            for pcm, words in self._speak(sentence, speed):
                for chunk in split_into_chunks(sentence, pcm, self.rate, words):
                    yield replace(chunk, words=tuple(shift(word, spoken_ms, start) for word in chunk.words))
                spoken_ms += pcm_ms(len(pcm), self.rate)

    def _speak(self, sentence: str, speed: float) -> Iterator[tuple[bytes, tuple[Word, ...]]]:
        """PCM and words of the sentence's parts; times count from the part's first sample."""
        parts = self._tts.phonemize(sentence)
        ends = self._word_ends(sentence, parts)
        for part in parts:
            wave, durations = self._run(self._tts.ids(part), speed)
            wave, cut = trim(wave)
            starts = self._group_starts(part, durations)
            timed = zip(starts, ends, strict=False)
            words = tuple(Word(max(0, (sample - cut) * 1000 // self.rate), end) for sample, end in timed if end)
            del ends[: len(starts)]
            yield float_to_pcm(wave * GAIN), words

    def _group_starts(self, phonemes: str, durations: npt.NDArray[np.float32]) -> list[int]:
        """The sample where each group of phonemes begins; groups are separated by spaces."""
        known = [symbol for symbol in phonemes if symbol in self._tts.vocab]
        # The ids are those of the known symbols, between two ids of silence.
        samples = np.cumsum(durations)[: len(known)] * FRAME_SAMPLES
        first = [
            index for index, symbol in enumerate(known) if symbol != " " and (index == 0 or known[index - 1] == " ")
        ]
        return [int(samples[index]) for index in first]

    def _word_ends(self, sentence: str, parts: Sequence[str]) -> list[int]:
        """For each group of phonemes, where the text of its word ends; 0 for a further group of the same word.

        A written word may be spoken as several ("$5"). Where that leaves the groups unclear, all are 0, and the words
        are spread over the speech.
        """
        written = spoken_words(sentence)
        groups = sum(len(part.split()) for part in parts)
        counts = [1] * len(written)
        if len(written) != groups:
            counts = [len(" ".join(self._tts.phonemize(word[0])).split()) for word in written]
        if sum(counts) != groups:
            return [0] * groups
        return [end for word, count in zip(written, counts, strict=True) for end in (word.end(), *[0] * (count - 1))]


def shift(word: Word, ms: int, characters: int) -> Word:
    return Word(word.start_ms + ms, word.text_end + characters)


def trim(wave: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """The samples without the silence around them, and how many were cut before them."""
    audible = np.flatnonzero(np.abs(wave) > AUDIBLE)
    if not len(audible):
        return wave[:0], 0
    start = max(0, int(audible[0]) - LEAD_SAMPLES)
    return wave[start : int(audible[-1]) + TAIL_SAMPLES], start


def make_tts(argument: str | None, settings: Settings) -> LocalTTS:
    """There is one voice, so `argument` is ignored. Raises `SetupError`."""
    require_extra("hibari", "hibari", extra="hibari", flag="--tts hibari")
    return LocalTTS("hibari", load_model, HibariModel.rate, languages=("en",))


def load_model() -> HibariModel:
    """Raises `SetupError`."""
    from hibari import Hibari, dsp
    from hibari.tts import ASSETS

    file = Path(ASSETS) / "hibari.onnx"
    check_sha256(file, SHA256)
    try:
        # It hands `model` to ONNX Runtime, which takes a file's content as well as its path.
        tts = Hibari(voice=VOICE, model=with_output(file.read_bytes(), DURATIONS))
    except Exception as error:  # ONNX Runtime has many types
        raise SetupError(f"hibari could not be loaded: {error}") from error

    def run(ids: list[int], speed: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        feeds = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        *spectra, durations = tts.sess.run(None, feeds)
        wave = dsp.synth(*(output[0] for output in spectra), np.random.default_rng(0))
        return np.asarray(wave, np.float32), np.asarray(durations, np.float32).reshape(-1)

    hibari = HibariModel(tts, run)
    for _ in hibari.synthesize("Warm up.", GenerateOptions()):
        pass
    return hibari


def with_output(model: bytes, tensor: bytes) -> bytes:
    """A serialized ONNX model that also outputs an inner tensor.

    Protocol Buffers merges a message that follows another one: here a ``ModelProto`` (field 7, ``graph``) with one more
    ``GraphProto.output`` (field 12) of that ``name`` (field 1).
    """
    return model + _field(7, _field(12, _field(1, tensor)))


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of Protocol Buffers; the value must be shorter than 128 bytes."""
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value
