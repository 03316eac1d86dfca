"""The embedded voice: espeak-ng in a process of its own. Over a hundred languages, and words timed to the sample."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from echosight.engines import SpeechChunk
from echosight.engines.runtime.ipc import FrameType
from echosight.engines.runtime.subprocess_pool import Pool
from echosight.media import Word
from echosight.options import GenerateOptions
from echosight.settings import Settings

AHEAD_BYTES = 44_100
"""One second: what the process may send before the reader has taken it."""

WORDS_A_MINUTE = 175


class EspeakTTS:
    """A `TTS` of 22,050 Hz. `language` speaks where the options name neither a voice nor a language.

    A voice is a language (``de``, ``en-gb``), with a variant if wished (``en-us+f3``).
    """

    name = "espeak-ng"
    rate = 22_050

    def __init__(self, processes: int = 1, language: str = "en-us") -> None:
        self.pool = Pool("echosight.engines.tts.espeak_process", "espeak-ng", processes)
        self.voices: tuple[str, ...] = ()
        self._language = language

    async def start(self) -> None:
        await self.pool.start()
        hello = json.loads(self.pool.hello)
        self.rate = hello["rate"]
        self.voices = tuple(hello["voices"])

    async def close(self) -> None:
        await self.pool.close()

    async def synthesize(self, text: str, options: GenerateOptions) -> AsyncGenerator[SpeechChunk]:
        """Pieces of 60 ms. Unknown voices and languages are spoken in the default one."""
        channel = await self.pool.open()
        words: list[Word] = []
        last = Word(0, 0)
        held: SpeechChunk | None = None
        try:
            channel.send(FrameType.BEGIN, self._request(text, options))
            while (frame := await channel.receive()).kind is not FrameType.DONE:
                if frame.kind is FrameType.WORDS:
                    for sample, at, length in json.loads(frame.payload):
                        end = _word_end(text, at + length)
                        if end > last.text_end:
                            words.append(last := Word(sample * 1000 // self.rate, end))
                elif frame.kind is FrameType.AUDIO:
                    if held:
                        yield held
                    held = SpeechChunk(frame.payload, tuple(words))
                    words.clear()
                    channel.send(FrameType.CREDIT, len(frame.payload).to_bytes(4, "little"))
            if held and last.text_end:
                # Idioms ("at once") are one word to espeak, and it may be the last one.
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
                "words_a_minute": round(max(80.0, min(WORDS_A_MINUTE * options.speed, 450.0))),
                "credit": AHEAD_BYTES,
            }
        ).encode()


def voice(argument: str | None, settings: Settings) -> EspeakTTS:
    """`argument`: the voice that speaks where none is asked for, such as ``de`` or ``en-us+f3``."""
    return EspeakTTS(language=argument or settings.language or "en-us")


def _word_end(text: str, at: int) -> int:
    """Where the word that ends at `at` ends with the punctuation behind it, and with signs that nobody speaks."""
    end = len(text[:at].rstrip())
    for i in range(end, len(text)):
        if text[i].isalnum():
            break
        if not text[i].isspace():
            end = i + 1
    return end
