"""Whisper as a transcriber, by faster-whisper (CTranslate2): partial texts while the user speaks, and word times."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from echosight.audio.silero import Samples
from echosight.audio.speech_spans import VadOptions, get_speech_timestamps
from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.huggingface.download import download
from echosight.engines.runtime.progress import LoadProgress, tell
from echosight.engines.runtime.worker import Worker
from echosight.errors import EngineFailure, SetupError
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word
from echosight.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_MODEL = "small"
BYTES_A_MS = INPUT_SAMPLE_RATE // 500

CADENCE_MS = 500
"""New speech that is worth another look."""

LOAD = 0.5
"""Part of the time that an utterance's partial texts may take of the model."""

LONGEST_MS = 24_000
"""Beyond it the beginning of an utterance is settled: Whisper sees 30 s at a time, and a look costs what it sees."""

SPEECH = VadOptions(threshold=0.5, min_speech_duration_ms=96, speech_pad_ms=96)
FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")


@dataclass(frozen=True, slots=True)
class Guards:
    """What a segment is dropped for: Whisper writes fluent sentences where nobody speaks (Koenecke et al. 2024)."""

    no_speech: float = 0.6
    log_probability: float = -1.0
    compression_ratio: float = 2.4

    def drop(self, segment: Any) -> bool:
        silent = segment.avg_logprob < self.log_probability and segment.no_speech_prob > self.no_speech
        return bool(silent or segment.compression_ratio > self.compression_ratio)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word as it is written, with the blank before it where there is one, and when it begins."""

    start_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech with a text; `words` are one where the model did not time them."""

    text: str
    end_ms: int
    words: tuple[Spoken, ...]


@dataclass(slots=True)
class _Utterance:
    """What was heard. The words before `settled_ms` are settled; only what follows is looked at again."""

    language: str | None
    pcm: bytearray = field(default_factory=bytearray)
    settled_ms: int = 0
    settled: list[Spoken] = field(default_factory=list)
    partial: str = ""
    told: str = ""
    looked: int = 0
    next_look: float = 0.0
    looking: asyncio.Task[None] | None = None
    final: tuple[int, Transcript] | None = None

    @property
    def settled_text(self) -> str:
        return "".join(word.text for word in self.settled)

    def rest(self) -> bytes:
        return bytes(self.pcm[self.settled_ms * BYTES_A_MS :])


class Decoder:
    """The model, in whichever thread asks: CTranslate2 runs as many decodings at once as it has workers."""

    def __init__(self, model: Any, guards: Guards = Guards()) -> None:
        self._model = model
        self._guards = guards
        self._languages = frozenset(model.supported_languages)

    def language(self, asked: str | None) -> str | None:
        """The model's code for a language; None has it find out."""
        code = (asked or "").lower().partition("-")[0]
        return code if code in self._languages else None

    def decode(
        self, pcm: bytes, language: str | None, before: str, thorough: bool, wanted: Callable[[], bool]
    ) -> tuple[list[Segment], str | None]:
        """Segments, timed from the first sample, and the language. Only thorough ones have every word timed.

        `before` is what was said before; `wanted` is asked between segments whether to go on.
        """
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32_768)
        if not _anybody_speaks(samples):
            return [], language
        found, info = self._model.transcribe(
            samples,
            language=self.language(language),
            beam_size=5 if thorough else 1,
            # Looks at a temperature would contradict each other, and cost a decoding each.
            temperature=(0.0, 0.4, 0.8) if thorough else 0.0,
            word_timestamps=thorough,
            condition_on_previous_text=False,
            initial_prompt=before[-200:] or None,
            no_speech_threshold=self._guards.no_speech,
            log_prob_threshold=self._guards.log_probability,
            compression_ratio_threshold=self._guards.compression_ratio,
        )
        segments = []
        for segment in found:
            if not wanted():
                break
            if not self._guards.drop(segment):
                words = tuple(Spoken(round(w.start * 1000), w.word) for w in segment.words or ())
                words = words or (Spoken(round(segment.start * 1000), segment.text),)
                segments.append(Segment(segment.text, round(segment.end * 1000), words))
        return segments, info.language


class WhisperSTT:
    """A `STT`. `build` loads the model. Partial texts and final ones have a thread each, so that the end of
    a turn never waits for somebody else's partial text.
    """

    def __init__(self, name: str, build: Callable[[], Decoder], language: str | None = None) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self._build = build
        self._language = language
        self._looks = Worker("whisper-looks")
        self._finals = Worker("whisper")
        self._utterances: dict[str, _Utterance] = {}
        self._decoder: Decoder

    async def start(self) -> None:
        self._decoder = await self._finals.call(lambda: self.loading.run(self._build))

    async def close(self) -> None:
        for utterance in [*self._utterances]:
            await self.forget(utterance)
        await self._looks.close()
        await self._finals.close()

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """Keep it, and have a look at all of it every half second, more seldom where looks take long."""
        heard = self._utterances.setdefault(utterance, _Utterance(language or self._language))
        heard.pcm += pcm
        due = len(heard.pcm) - heard.looked >= CADENCE_MS * BYTES_A_MS and time.monotonic() >= heard.next_look
        if due and (heard.looking is None or heard.looking.done()):
            heard.looking = asyncio.create_task(self._look(heard), name=f"partial text of {utterance}")
        if heard.partial == heard.told:
            return None
        heard.told = heard.partial
        return heard.told

    async def finish(self, utterance: str) -> Transcript:
        """One decoding of what is not settled yet. Raises `EngineFailure`."""
        heard = self._utterances.get(utterance)
        if heard is None:
            raise EngineFailure("The transcriber heard nothing of this turn")
        size = len(heard.pcm)
        if heard.final is None or heard.final[0] != size:
            # A look may settle more of it meanwhile.
            settled, since_ms = [*heard.settled], heard.settled_ms
            segments, language = await self._decode(self._finals, heard, thorough=True)
            words = settled + _from(since_ms, segments)
            heard.final = size, _transcript(words, language, size // BYTES_A_MS)
        return heard.final[1]

    async def forget(self, utterance: str) -> None:
        heard = self._utterances.pop(utterance, None)
        if heard is not None and heard.looking is not None:
            heard.looking.cancel()
            await asyncio.gather(heard.looking, return_exceptions=True)

    async def _look(self, heard: _Utterance) -> None:
        """Understand what there is by now."""
        began = time.monotonic()
        heard.looked = len(heard.pcm)
        long = heard.looked // BYTES_A_MS - heard.settled_ms > LONGEST_MS
        try:
            segments, _ = await self._decode(self._looks, heard, thorough=long)
        except EngineFailure:
            log.warning("A partial text failed; the final one will tell", exc_info=True)
            return
        text = heard.settled_text + "".join(segment.text for segment in segments)
        if long:
            _settle(heard, segments)
        heard.partial = text.strip()
        heard.next_look = time.monotonic() + (time.monotonic() - began) * (1 / LOAD - 1)

    async def _decode(self, worker: Worker, heard: _Utterance, *, thorough: bool) -> tuple[list[Segment], str | None]:
        pcm, before, size = heard.rest(), heard.settled_text, len(heard.pcm)
        # A partial text is of use however old; a final one is void when more was heard.
        abandoned: list[bool] = []

        def wanted() -> bool:
            return not abandoned and (not thorough or worker is self._looks or len(heard.pcm) == size)

        try:
            return await worker.call(lambda: self._decoder.decode(pcm, heard.language, before, thorough, wanted))
        except asyncio.CancelledError:
            abandoned.append(True)
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineFailure(f"Whisper failed: {error}") from error


def transcriber(argument: str | None, settings: Settings) -> WhisperSTT:
    """`argument`: a size (``small``, ``distil-large-v3``…), a Hugging Face id or a folder. Raises `SetupError`."""
    source = argument or DEFAULT_MODEL
    require_extra("Whisper", "faster_whisper", extra="whisper", flag=f"--stt whisper:{source}")
    if _is_folder(source):
        check_folder(Path(source).expanduser())
    name = Path(source).name
    return WhisperSTT(f"whisper {name}", lambda: Decoder(read_model(source, settings.device)), settings.language)


def read_model(source: str, device: str = "auto") -> Any:
    """The model, downloaded where `source` is no folder. Raises `SetupError`."""
    import ctranslate2
    from faster_whisper import WhisperModel

    folder = check_folder(Path(source).expanduser() if _is_folder(source) else _download(source))
    tell("weights")
    gpu = device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    if device.startswith("cuda") and not gpu:
        raise SetupError("There is no CUDA device here: choose --device cpu")
    try:
        model = WhisperModel(
            str(folder),
            device="cuda" if gpu else "cpu",
            device_index=int(device.partition(":")[2] or 0),
            compute_type="float16" if gpu else "int8",
            cpu_threads=max(1, (os.cpu_count() or 2) // 2),
            num_workers=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SetupError(f"{source} could not be loaded by faster-whisper: {_line(error)}") from error
    return model


def check_folder(folder: Path) -> Path:
    """Raises `SetupError` where the folder holds no converted model."""
    if not folder.is_dir():
        raise SetupError(f"There is no folder {folder}; --stt whisper:small downloads a model")
    if not (folder / "model.bin").is_file():
        raise SetupError(
            f"{folder} holds no model.bin, so it was not converted: "
            f"ct2-transformers-converter --model {folder} --output_dir DIR --copy_files tokenizer.json"
        )
    return folder


def _download(source: str) -> Path:
    # The package's own download hides its progress.
    from faster_whisper import utils

    repository = source if "/" in source else utils._MODELS.get(source)
    if repository is None:
        known = ", ".join(utils.available_models())
        raise SetupError(f"There is no Whisper called {source!r}; --stt whisper: takes a folder or one of {known}")
    try:
        return download(repository, FILES)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{repository} could not be downloaded ({_line(error)}): where there is a network, "
            f"hf download {repository} --local-dir DIR, then --stt whisper:DIR"
        ) from error


def _is_folder(source: str) -> bool:
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~"))


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _anybody_speaks(samples: Samples) -> bool:
    return bool(get_speech_timestamps(samples, SPEECH))


def _settle(heard: _Utterance, segments: list[Segment]) -> None:
    """All segments but the last, which may go on, are settled; of silence, all but its last second."""
    if len(segments) > 1:
        heard.settled += _from(heard.settled_ms, segments[:-1])
        heard.settled_ms += segments[-2].end_ms
    elif not segments:
        heard.settled_ms = max(heard.settled_ms, heard.looked // BYTES_A_MS - 1000)


def _from(start_ms: int, segments: list[Segment]) -> list[Spoken]:
    return [Spoken(word.start_ms + start_ms, word.text) for segment in segments for word in segment.words]


def _transcript(words: list[Spoken], language: str | None, duration_ms: int) -> Transcript:
    text, timed = "", []
    now_ms = 0
    for word in words:
        text = (text + word.text).lstrip()
        # Where the model wanders, it names times that never were.
        now_ms = max(now_ms, min(word.start_ms, duration_ms))
        timed.append(Word(now_ms, len(text.rstrip())))
    return Transcript(text.rstrip(), tuple(timed), language)
