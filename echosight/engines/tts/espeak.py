"""The built-in TTS: espeak-ng in a process of its own. It speaks over a hundred languages and times words exactly."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from echosight.engines import SpeechChunk
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.subprocess_pool import Pool
from echosight.media import Word
from echosight.options import GenerateOptions
from echosight.settings import Settings

CREDIT_BYTES = 44_100
"""One second: the speech that the process may send before the reader has taken it."""

WORDS_PER_MINUTE = 175


class EspeakTTS:
    """A `TTS` of 22,050 Hz. `language` speaks where the options name neither a known voice nor a known language.

    A voice is a language (``de``, ``en-gb``), optionally with a variant (``en-us+f3``).
    """

    name = "espeak-ng"
    rate = 22_050

    def __init__(self, processes: int = 1, language: str = "en-us") -> None:
        self.pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", processes)
        self.voices: tuple[str, ...] = ()
        self._language = language

    async def start(self) -> None:
        await self.pool.start()
        ready = json.loads(self.pool.ready_payload)
        self.rate = ready["rate"]
        self.voices = tuple(ready["voices"])

    async def close(self) -> None:
        await self.pool.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Chunks of 60 ms. Unknown voices and languages are spoken in the default one. Raises `EngineFailure`."""
        channel = await self.pool.open()
        words: list[Word] = []
        last = Word(0, 0)
        held: SpeechChunk | None = None
        try:
            channel.send(FrameType.BEGIN, self._request(text, options))
            while (frame := await channel.receive()).kind is not FrameType.DONE:
                if frame.kind is FrameType.WORDS:
                    for sample, start, length in json.loads(frame.payload):
                        end = _word_end(text, start + length)
                        if end > last.text_end:
                            words.append(last := Word(sample * 1000 // self.rate, end))
                elif frame.kind is FrameType.AUDIO:
                    if held:
                        yield held
                    held = SpeechChunk(frame.payload, tuple(words))
                    words.clear()
                    channel.send(FrameType.CREDIT, len(frame.payload).to_bytes(4, "little"))
            if held and last.text_end:
                # espeak takes idioms ("at once") as one word; the last one may be one.
                tail = Word(last.start_ms, len(text.rstrip()))
                yield SpeechChunk(held.pcm, held.words if tail == last else (*held.words, tail))
            elif held:
                yield held
        finally:
            channel.close()

    def _request(self, text: str, options: GenerateOptions) -> bytes:
        language = (options.language or "").lower()
        voices = [options.voice or "", language, language.partition("-")[0], self._language]
        return json.dumps(
            {
                "text": text,
                "voices": [name for name in voices if name],
                "words_per_minute": round(max(80.0, min(WORDS_PER_MINUTE * options.speed, 450.0))),
                "credit": CREDIT_BYTES,
            }
        ).encode()


def make_tts(argument: str | None, settings: Settings) -> EspeakTTS:
    """`argument`: the default voice, such as ``de`` or ``en-us+f3``."""
    return EspeakTTS(language=argument or settings.language or "en-us")


def _word_end(text: str, end: int) -> int:
    """Index after the word that ends at `end`, and after the punctuation and signs behind it that are not spoken."""
    end = len(text[:end].rstrip())
    for index in range(end, len(text)):
        if text[index].isalnum():
            break
        if not text[index].isspace():
            end = index + 1
    return end
