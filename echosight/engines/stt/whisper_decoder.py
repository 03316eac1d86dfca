"""Whisper's decoding: segments with timed words, without those that the model hallucinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from echosight.audio.pcm import pcm_to_float
from echosight.audio.speech_spans import VadOptions, get_speech_timestamps
from echosight.engines.stt.whisper_window import ShortWindow
from echosight.media import Transcript, Word

SPEECH = VadOptions(threshold=0.5, min_speech_duration_ms=96, speech_pad_ms=96)
MAX_PROMPT_CHARS = 200
FINAL_BEAM = 5


@dataclass(frozen=True, slots=True)
class HallucinationFilter:
    """Drops segments that nobody spoke: Whisper writes fluent sentences into silence (Koenecke et al. 2024).

    The rules and thresholds are those of `transcribe.py` of openai/whisper.
    """

    no_speech: float = 0.6
    log_probability: float = -1.0
    compression_ratio: float = 2.4

    def drops(self, segment: Any) -> bool:
        silent = segment.avg_logprob < self.log_probability and segment.no_speech_prob > self.no_speech
        return bool(silent or segment.compression_ratio > self.compression_ratio)

    def doubts(self, segment: Any) -> bool:
        """Whether the text deserves another decode, at other temperatures."""
        return bool(segment.avg_logprob < self.log_probability or segment.compression_ratio > self.compression_ratio)


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word with the space before it where there is one, and when it begins."""

    start_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech. Where the model did not time the words, `words` is the whole text as one."""

    text: str
    end_ms: int
    words: tuple[TimedWord, ...]

    def words_after(self, offset_ms: int) -> list[TimedWord]:
        """The words, where the segment's audio begins `offset_ms` into the utterance."""
        return [TimedWord(word.start_ms + offset_ms, word.text) for word in self.words]


class Decoder:
    """A `faster_whisper.WhisperModel`. May be called from several threads at once: CTranslate2 then decodes in parallel
    with as many workers as the model has.
    """

    def __init__(
        self, model: Any, hallucinations: HallucinationFilter = HallucinationFilter(), *, short_window: bool = False
    ) -> None:
        self._model = model
        self._short_window = ShortWindow(model) if short_window else None
        self._filter = hallucinations
        self._languages = frozenset(model.supported_languages)

    def language_code(self, language: str | None) -> str | None:
        """The model's code for a BCP 47 tag; None, which has the model detect it, where it knows none."""
        code = (language or "").lower().partition("-")[0]
        return code if code in self._languages else None

    def decode(
        self, pcm: bytes, language: str | None, previous_text: str, final: bool, should_continue: Callable[[], bool]
    ) -> tuple[list[Segment], str | None]:
        """Segments of PCM16 at 16 kHz, timed from its first sample, and the language code.

        `final` decodes with beam search and times every word; partial texts need neither. `previous_text` is the
        prompt. `should_continue` is called between segments; False stops with those decoded so far.
        """
        samples = pcm_to_float(pcm)
        if not _has_speech(samples):
            return [], self.language_code(language)
        code = self.language_code(language)
        prompt = previous_text[-MAX_PROMPT_CHARS:]
        utterance = None
        if self._short_window is not None and self._short_window.fits(samples):
            beam = FINAL_BEAM if final else 1
            utterance, code = self._short_window.decode(samples, code, prompt, beam=beam, timed=final)
        if utterance is not None and not (final and self._filter.doubts(utterance)):
            return self._select([utterance], lambda: True), code
        found, info = self._model.transcribe(
            samples,
            language=code,
            beam_size=FINAL_BEAM if final else 1,
            # Partial texts at different temperatures would contradict each other, and cost a decoding each.
            temperature=(0.0, 0.4, 0.8) if final else 0.0,
            word_timestamps=final,
            condition_on_previous_text=False,
            initial_prompt=prompt or None,
            no_speech_threshold=self._filter.no_speech,
            log_prob_threshold=self._filter.log_probability,
            compression_ratio_threshold=self._filter.compression_ratio,
        )
        return self._select(found, should_continue), info.language

    def _select(self, found: Iterable[Any], should_continue: Callable[[], bool]) -> list[Segment]:
        segments = []
        for segment in found:
            if not should_continue():
                break
            if segment.text.strip() and not self._filter.drops(segment):
                words = tuple(TimedWord(round(w.start * 1000), w.word) for w in segment.words or ())
                words = words or (TimedWord(round(segment.start * 1000), segment.text),)
                segments.append(Segment(segment.text, round(segment.end * 1000), words))
        return segments


def to_transcript(words: list[TimedWord], language: str | None, duration_ms: int) -> Transcript:
    """The words as a transcript of `duration_ms` of audio."""
    text, timed = "", []
    now_ms = 0
    for word in words:
        before = text
        text = (text + word.text).lstrip()
        # Whisper may emit timestamps beyond the audio: clamp them and keep them monotonic.
        now_ms = max(now_ms, min(word.start_ms, duration_ms))
        if len(text.rstrip()) > len(before.rstrip()):
            timed.append(Word(now_ms, len(text.rstrip())))
    return Transcript(text.rstrip(), tuple(timed), language)


def _has_speech(samples: Any) -> bool:
    return bool(get_speech_timestamps(samples, SPEECH))
