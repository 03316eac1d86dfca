"""An engine made of three: a transcriber hears, a chat answers, a voice speaks; each works while the others do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from echosight.conversation import AudioPart, Conversation, Part, UserTurn
from echosight.engines import (
    LLM,
    STT,
    TTS,
    Chunk,
    GenerationSummary,
    SpeechChunk,
    TextChunk,
    ToolCallChunk,
)
from echosight.engines.cascade.listener import Listener
from echosight.engines.cascade.sentences import Sentence, Splitter, speakable
from echosight.engines.runtime.progress import StartupProgress
from echosight.engines.tts.word_timing import WordClock
from echosight.errors import EngineFailure
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)

TEXTS_AHEAD = 32
"""Pieces of text the chat may be ahead of the reader."""

SPEECH_AHEAD = 32
"""Pieces of speech the voice may be ahead of it: with pieces of 60 ms, the next two seconds."""


class Cascade:
    """An `Engine` of a `STT`, a `LLM` and a `TTS`."""

    def __init__(self, stt: STT, llm: LLM, tts: TTS, *, capacity: int = 32) -> None:
        self.stt = stt
        self.llm = llm
        self.tts = tts
        self.name = llm.name
        self.capacity = capacity
        self.output_rate = tts.rate
        self.voices = tts.voices
        self._listener = Listener(stt)
        self._written_by: dict[str, str] = {}
        """Conversation id -> who wrote down its last speech."""
        self._roll = StartupProgress()

    async def start(self) -> None:
        """Start the parts side by side; where one cannot, none stays up."""
        try:
            starts = [self._roll.start(part) for part in (self.stt, self.llm, self.tts)]
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if outcome is not None:
                    raise outcome
        except BaseException:
            await self.close()
            raise
        # Some parts know these only now.
        self.name = self.llm.name
        self.output_rate, self.voices = self.tts.rate, self.tts.voices

    @property
    def loading(self) -> str:
        """The parts that are not up yet and what they load, for people."""
        return str(self._roll)

    async def close(self) -> None:
        await asyncio.gather(self.stt.close(), self.llm.close(), self.tts.close())

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """Speech goes to the transcriber; what is new of its text goes on to the chat."""
        turn = conversation.pending_turn
        if turn is None or not isinstance(part, AudioPart) or not part.pcm:
            return None
        if not self._listener.knows(conversation, turn):
            await self._listener.tidy(conversation)
            await self.llm.prefill(conversation, "")
        try:
            text = await self._listener.hear(conversation, turn, part.pcm)
        except EngineFailure:
            log.debug("the transcriber failed; settle will tell", exc_info=True)
            return None
        if text:
            await self.llm.prefill(conversation, text)
        return text

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        transcript = await self._listener.finalize_transcript(conversation, turn)
        if transcript is None:
            return None
        self._written_by[conversation.id] = transcript.provider or self.stt.name
        return transcript

    async def release(self, conversation_id: str) -> None:
        self._written_by.pop(conversation_id, None)
        await self._listener.release(conversation_id)
        await self.llm.release(conversation_id)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Text as soon as it is there, speech in order beside it; the voice is a sentence ahead of the reader."""
        await self._listener.tidy(conversation)
        options = replace(options, language=options.language or conversation.language)
        async with aclosing(self.llm.generate(conversation, options)) as reply:
            answer = _Answer(reply, self.tts if options.speech else None, options)
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        ears = self._written_by.get(conversation.id, self.stt.name)
        chat = answer.summary.providers or (self.llm.name,)
        voices = tuple(answer.voices) or (self.tts.name,) if options.speech else ()
        yield replace(answer.summary, providers=(ears, *chat, *voices))


class _Answer:
    """One answer on its way: a task reads the chat, a task drives the voice, `pieces` merges what they make."""

    def __init__(
        self,
        reply: AsyncIterator[TextChunk | ToolCallChunk | GenerationSummary],
        voice: TTS | None,
        options: GenerateOptions,
    ) -> None:
        self.summary = GenerationSummary()
        self.voices: dict[str, None] = {}
        """Who spoke, in order."""
        self._reply = reply
        self._voice = voice
        self._options = options
        self._texts: asyncio.Queue[TextChunk | ToolCallChunk] = asyncio.Queue(TEXTS_AHEAD)
        self._sentences: asyncio.Queue[Sentence | None] = asyncio.Queue()
        self._speech: asyncio.Queue[SpeechChunk] = asyncio.Queue(SPEECH_AHEAD)
        self._news = asyncio.Event()
        self._samples = 0

    async def pieces(self) -> AsyncGenerator[Chunk]:
        work = [self._read_chat()] if self._voice is None else [self._read_chat(), self._drive(self._voice)]
        tasks = [asyncio.create_task(w) for w in work]
        for task in tasks:
            task.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                self._news.clear()
                # The order of these two: what a task left behind when it ended is still delivered.
                over = all(task.done() for task in tasks)
                for task in tasks:
                    if task.done():
                        task.result()
                if not self._texts.empty():
                    yield self._texts.get_nowait()
                elif not self._speech.empty():
                    yield self._speech.get_nowait()
                elif over:
                    return
                else:
                    await self._news.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_chat(self) -> None:
        splitter = Splitter()
        async for piece in self._reply:
            if isinstance(piece, GenerationSummary):
                self.summary = piece
                continue
            await self._texts.put(piece)
            self._news.set()
            if isinstance(piece, TextChunk) and self._voice:
                for sentence in splitter.feed(piece.text):
                    self._sentences.put_nowait(sentence)
        for sentence in splitter.finish() if self._voice else ():
            self._sentences.put_nowait(sentence)
        self._sentences.put_nowait(None)

    async def _drive(self, voice: TTS) -> None:
        while (sentence := await self._sentences.get()) is not None:
            began_ms = self._samples * 1000 // voice.rate
            clock = WordClock(sentence.text, voice.rate)
            async with aclosing(voice.synthesize(speakable(sentence.text), self._options)) as pieces:
                async for piece in pieces:
                    self.voices[piece.provider or voice.name] = None
                    words = clock.words(piece)
                    await self._say(piece.pcm, words, sentence.start, began_ms)
            if rest := clock.rest():
                # The voice was faster than estimated; a moment of silence carries the words that are due.
                await self._say(bytes(2 * (voice.rate // 50)), rest, sentence.start, began_ms)

    async def _say(self, pcm: bytes, words: tuple[Word, ...], start: int, began_ms: int) -> None:
        placed = tuple(Word(w.start_ms + began_ms, w.text_end + start) for w in words)
        self._samples += len(pcm) // 2
        await self._speech.put(SpeechChunk(pcm, placed))
        self._news.set()
