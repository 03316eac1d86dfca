"""Whisper on a short window: it encodes the audio that there is and some silence, instead of 30 seconds.

Encoding is most of Whisper's work on a short utterance, and the model always takes 30 s in upstream's code. A window of
the utterance and `PAD_S` of silence costs a fraction of it, with the same words. On a window that it was not trained
on, the model sometimes repeats itself; `is_loop` and `repeats_itself` find that, and the caller decodes with 30 s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from echosight.media import INPUT_SAMPLE_RATE

PAD_S = 6.0
MAX_WINDOW_S = 29.0
FRAMES_PER_S = 100
BASE_TOKENS = 8
TOKENS_PER_S = 7
"""More tokens than fast speech has."""

PUNCTUATION_BEFORE = "\"'“¿([{-"
PUNCTUATION_AFTER = "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after or before them, as in upstream's defaults."""


@dataclass(frozen=True, slots=True)
class TimedText:
    """A word with the space before it, and when it is spoken, in seconds."""

    word: str
    start: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """One decoded window, with the fields of faster-whisper's ``Segment``; times in seconds from the first sample."""

    text: str
    start: float
    end: float
    words: tuple[TimedText, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float


class ShortWindow:
    """Decodes utterances of up to 23 s with a `faster_whisper.WhisperModel`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @staticmethod
    def fits(samples: npt.NDArray[np.float32]) -> bool:
        return len(samples) / INPUT_SAMPLE_RATE + PAD_S <= MAX_WINDOW_S

    def decode(
        self, samples: npt.NDArray[np.float32], language: str | None, previous_text: str, *, beam: int, timed: bool
    ) -> tuple[Utterance | None, str]:
        """What is said in float samples at 16 kHz, and the language code; None where the model looped.

        `language` None: the model detects it, without a second encoding. `previous_text` is the prompt; `timed` finds
        the time of every word.
        """
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        model = self._model
        seconds = len(samples) / INPUT_SAMPLE_RATE
        encoded = model.encode(self._features(samples, seconds))
        if language is None:
            language = self._detect_language(encoded)
        tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language)
        previous = tokenizer.encode(" " + previous_text.strip()) if previous_text else []
        prompt = model.get_prompt(tokenizer, previous, without_timestamps=True)
        limit = BASE_TOKENS + int(TOKENS_PER_S * seconds)
        result = model.model.generate(
            encoded,
            [prompt],
            beam_size=beam,
            max_length=len(prompt) + limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=get_suppressed_tokens(tokenizer, [-1]),
        )[0]
        tokens = [token for token in result.sequences_ids[0] if token < tokenizer.eot]
        text = tokenizer.decode(tokens)
        if is_loop(tokens, limit) or repeats_itself(text):
            return None, language
        words = self._word_times(tokenizer, tokens, encoded, seconds) if timed else ()
        return self._utterance(text, result, seconds, words), language

    def _features(self, samples: npt.NDArray[np.float32], seconds: float) -> npt.NDArray[np.float32]:
        """Log-mel [bands, frames]; an even number of frames, as the encoder halves it."""
        frames = int((seconds + PAD_S) * FRAMES_PER_S) // 2 * 2
        padded = np.pad(samples, (0, max(0, frames * INPUT_SAMPLE_RATE // FRAMES_PER_S - len(samples))))
        features: npt.NDArray[np.float32] = self._model.feature_extractor(padded, padding=0)[:, :frames]
        return features

    def _detect_language(self, encoded: Any) -> str:
        if not self._model.model.is_multilingual:
            return "en"
        ((token, _), *_) = self._model.model.detect_language(encoded)[0]
        return str(token)[2:-2]

    def _word_times(self, tokenizer: Any, tokens: list[int], encoded: Any, seconds: float) -> tuple[TimedText, ...]:
        if not tokens:
            return ()
        from faster_whisper.transcribe import merge_punctuations

        (words,) = self._model.find_alignment(tokenizer, [tokens], encoded, int(seconds * FRAMES_PER_S))
        merge_punctuations(words, PUNCTUATION_BEFORE, PUNCTUATION_AFTER)
        return tuple(TimedText(word["word"], float(word["start"])) for word in words if word["word"].strip())

    @staticmethod
    def _utterance(text: str, result: Any, seconds: float, words: tuple[TimedText, ...]) -> Utterance:
        from faster_whisper.transcribe import get_compression_ratio

        length = len(result.sequences_ids[0])
        return Utterance(
            text=text,
            start=0.0,
            end=seconds,
            words=words,
            avg_logprob=result.scores[0] * length / (length + 1),
            no_speech_prob=result.no_speech_prob,
            compression_ratio=get_compression_ratio(text),
        )


def repeats_itself(text: str) -> bool:
    """Whether the last three words were said before, or a run of three or more words comes twice in a row.

    Case and punctuation may differ between the repetitions and do not count. Speakers repeat themselves, too; such an
    utterance only costs a second decode.
    """
    words = re.findall(r"[\w']+", text.lower())
    if len(words) > 3 and any(words[start : start + 3] == words[-3:] for start in range(len(words) - 3)):
        return True
    return _has_double_run(words)


def _has_double_run(sequence: Sequence[Any]) -> bool:
    """Whether a run of three or more elements comes twice in a row."""
    count = len(sequence)
    return any(
        sequence[start : start + size] == sequence[start + size : start + 2 * size]
        for size in range(3, count // 2 + 1)
        for start in range(count - 2 * size + 1)
    )


def is_loop(tokens: Sequence[int], limit: int) -> bool:
    """Whether the decoder repeats itself: it reached `limit` tokens, ends in three equal tokens or pairs, or has a run
    of three or more tokens twice in a row."""
    count = len(tokens)
    if count >= limit:
        return True
    if any(
        tokens[-size:] == tokens[-2 * size : -size] == tokens[-3 * size : -2 * size]
        for size in range(1, min(2, count // 3) + 1)
    ):
        return True
    return _has_double_run(tokens)
