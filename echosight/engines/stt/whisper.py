"""Whisper as an STT, by faster-whisper (CTranslate2): partial texts while the user speaks, and word times."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

from echosight.engines.runtime.extras import require_extra
from echosight.engines.runtime.progress import LoadProgress
from echosight.engines.runtime.worker import Worker
from echosight.engines.stt import STREAM_CLOSED
from echosight.engines.stt.whisper_decoder import Decoder, Segment, TimedWord, to_transcript
from echosight.engines.stt.whisper_embedded import embedded_folder
from echosight.engines.stt.whisper_model import check_folder, is_folder, load_model
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript, pcm_ms
from echosight.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_MODEL = "small"
BYTES_PER_MS = INPUT_SAMPLE_RATE // 500

PARTIAL_INTERVAL_MS = 500
"""New speech after which a partial text is decoded."""

PARTIAL_DUTY = 0.5
"""Share of the time that the partial decodes of one stream may take."""

MAX_UNCONFIRMED_MS = 24_000
"""Beyond it the beginning of an utterance is confirmed: Whisper takes 30 s at a time, and decoding costs more the
longer the audio is."""


class WhisperSTT:
    """An `STT`. `build` loads the model.

    Partial and final decodes have a thread each, so that the end of a turn never waits for somebody else's partial
    text.
    """

    def __init__(self, name: str, build: Callable[[], Decoder], language: str | None = None) -> None:
        self.name = name
        self.loading = LoadProgress(name)
        self._build = build
        self._language = language
        self._partial_worker = Worker("whisper-partial")
        self._final_worker = Worker("whisper")
        self._streams: WeakSet[WhisperStream] = WeakSet()
        self._decoder: Decoder | None = None

    async def start(self) -> None:
        self._decoder = await self._final_worker.call(lambda: self.loading.run(self._build))

    async def close(self) -> None:
        for stream in [*self._streams]:
            await stream.close()
        await self._partial_worker.close()
        await self._final_worker.close()
        self._decoder = None

    def open(self, language: str | None = None, speaker: str | None = None) -> WhisperStream:
        stream = WhisperStream(self, language or self._language)
        self._streams.add(stream)
        return stream

    async def decode(
        self,
        pcm: bytes,
        language: str | None,
        previous_text: str,
        *,
        partial: bool,
        accurate: bool,
        should_continue: Callable[[], bool],
    ) -> tuple[list[Segment], str | None]:
        """See `Decoder.decode`. `partial` selects the thread. Raises `EngineFailure`."""
        decoder = self._decoder
        if decoder is None:
            raise EngineFailure(f"{self.name} is not started")
        worker = self._partial_worker if partial else self._final_worker
        try:
            return await worker.call(lambda: decoder.decode(pcm, language, previous_text, accurate, should_continue))
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineFailure(f"Whisper failed: {error}") from error


class WhisperStream:
    """An `STTStream`. The words before `_confirmed_ms` are confirmed; only the audio after it is decoded again."""

    def __init__(self, stt: WhisperSTT, language: str | None) -> None:
        self.partial_task: asyncio.Task[None] | None = None
        self._stt = stt
        self._language = language
        self._pcm = bytearray()
        self._confirmed_ms = 0
        self._confirmed: list[TimedWord] = []
        self._partial_text = ""
        self._reported = ""
        self._partial_bytes = 0
        """How much audio the last partial decode had."""
        self._next_partial = 0.0
        self._final: tuple[int, Transcript] = (0, Transcript(""))
        """The last transcript, and how many bytes it is of."""
        self._closed = False

    async def push(self, pcm: bytes) -> str | None:
        """Keeps the audio. A partial text is decoded every half second, or less often where decoding takes long."""
        self._check_open()
        self._pcm += pcm
        due = (
            len(self._pcm) - self._partial_bytes >= PARTIAL_INTERVAL_MS * BYTES_PER_MS
            and time.monotonic() >= self._next_partial
        )
        if due and (self.partial_task is None or self.partial_task.done()):
            self.partial_task = asyncio.create_task(self._decode_partial(), name="whisper partial text")
        if self._partial_text == self._reported:
            return None
        self._reported = self._partial_text
        return self._reported

    async def finalize(self) -> Transcript:
        """One decode of what is not confirmed yet."""
        self._check_open()
        size = len(self._pcm)
        if self._final[0] != size:
            # A partial decode may confirm more of it meanwhile.
            confirmed, confirmed_ms = [*self._confirmed], self._confirmed_ms
            segments, language = await self._decode(partial=False, accurate=True)
            self._check_open()
            words = confirmed + _words(segments, confirmed_ms)
            self._final = size, to_transcript(words, language, pcm_ms(size))
        return self._final[1]

    async def close(self) -> None:
        self._closed = True
        if self.partial_task is not None:
            self.partial_task.cancel()
            await asyncio.gather(self.partial_task, return_exceptions=True)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)

    async def _decode_partial(self) -> None:
        began = time.monotonic()
        self._partial_bytes = len(self._pcm)
        confirming = pcm_ms(self._partial_bytes) - self._confirmed_ms > MAX_UNCONFIRMED_MS
        try:
            segments, _ = await self._decode(partial=True, accurate=confirming)
        except EngineFailure:
            log.warning("Decoding a partial text failed; the final transcript may work", exc_info=True)
            return
        text = self._confirmed_text() + "".join(segment.text for segment in segments)
        if confirming:
            self._confirm(segments)
        self._partial_text = text.strip()
        self._next_partial = time.monotonic() + (time.monotonic() - began) * (1 / PARTIAL_DUTY - 1)

    async def _decode(self, *, partial: bool, accurate: bool) -> tuple[list[Segment], str | None]:
        size = len(self._pcm)
        pcm = bytes(self._pcm[self._confirmed_ms * BYTES_PER_MS :])
        cancelled = False

        def should_continue() -> bool:
            # A partial text is useful even when it is old; a final one is void when more audio was pushed.
            return not (cancelled or self._closed) and (partial or len(self._pcm) == size)

        try:
            return await self._stt.decode(
                pcm,
                self._language,
                self._confirmed_text(),
                partial=partial,
                accurate=accurate,
                should_continue=should_continue,
            )
        except asyncio.CancelledError:
            cancelled = True
            raise

    def _confirmed_text(self) -> str:
        return "".join(word.text for word in self._confirmed)

    def _confirm(self, segments: list[Segment]) -> None:
        """Confirm all segments but the last, which may go on; of silence, all but its last second."""
        if len(segments) > 1:
            self._confirmed += _words(segments[:-1], self._confirmed_ms)
            self._confirmed_ms += segments[-2].end_ms
        elif not segments:
            self._confirmed_ms = max(self._confirmed_ms, pcm_ms(self._partial_bytes) - 1000)


def _words(segments: list[Segment], offset_ms: int) -> list[TimedWord]:
    return [word for segment in segments for word in segment.words_after(offset_ms)]


def make_stt(argument: str | None, settings: Settings) -> WhisperSTT:
    """`argument`: a size (``small``, ``distil-large-v3``…), a Hugging Face id or a folder. Raises `SetupError`."""
    source = argument or DEFAULT_MODEL
    require_extra("Whisper", "faster_whisper", extra="whisper", flag=f"--stt whisper:{source}")
    if is_folder(source):
        check_folder(Path(source).expanduser())
    name = Path(source).name
    # The short window was measured with the embedded model only.
    short_window = embedded_folder(source) is not None

    def build() -> Decoder:
        return Decoder(load_model(source, settings.device), short_window=short_window)

    return WhisperSTT(f"whisper {name}", build, settings.language)
