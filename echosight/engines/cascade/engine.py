"""An engine made of three parts that work at the same time: an STT transcribes, an LLM replies, a TTS speaks."""

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
from echosight.engines.cascade.sentences import Sentence, SentenceSplitter, strip_markup
from echosight.engines.runtime.progress import StartupProgress
from echosight.engines.tts.word_timing import WordTimer
from echosight.errors import EngineFailure
from echosight.media import Transcript, Word
from echosight.options import GenerateOptions

log = logging.getLogger(__name__)

MAX_TEXTS_AHEAD = 32
"""Text chunks that the LLM may be ahead of the reader."""

MAX_SPEECH_AHEAD = 32
"""Speech chunks that the TTS may be ahead of the reader: two seconds where a chunk has 60 ms."""


class Cascade:
    """An `Engine` made of an `STT`, an `LLM` and a `TTS`."""

    def __init__(self, stt: STT, llm: LLM, tts: TTS, *, capacity: int = 32) -> None:
        self.stt = stt
        self.llm = llm
        self.tts = tts
        self.name = llm.name
        self.capacity = capacity
        self.output_rate = tts.rate
        self.voices = tts.voices
        self._listener = Listener(stt)
        self._stt_providers: dict[str, str] = {}
        """Conversation id -> name of the STT that wrote its last transcript."""
        self._startup = StartupProgress()

    async def start(self) -> None:
        """Start all parts at the same time. Where one cannot start, all are closed and its error is raised."""
        try:
            starts = [self._startup.start(part) for part in (self.stt, self.llm, self.tts)]
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if outcome is not None:
                    raise outcome
        except BaseException:
            await self.close()
            raise
        # Some parts know these only when their model is loaded.
        self.name = self.llm.name
        self.output_rate, self.voices = self.tts.rate, self.tts.voices

    @property
    def loading(self) -> str:
        """The parts that are not up yet and what they load, for people."""
        return str(self._startup)

    async def close(self) -> None:
        await asyncio.gather(self.stt.close(), self.llm.close(), self.tts.close())

    async def prefill(self, conversation: Conversation, part: Part) -> str | None:
        """Speech goes to the STT; where its partial text has changed, the LLM prefills that."""
        turn = conversation.pending_turn
        if turn is None or not isinstance(part, AudioPart) or not part.pcm:
            return None
        if not self._listener.has_heard(conversation, turn):
            await self._listener.drop_finished(conversation)
            await self.llm.prefill(conversation, "")
        try:
            text = await self._listener.push(conversation, turn, part.pcm)
        except EngineFailure:
            log.debug("The STT failed; `finalize_transcript` tries again", exc_info=True)
            return None
        if text:
            await self.llm.prefill(conversation, text)
        return text

    async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
        transcript = await self._listener.finalize_transcript(conversation, turn)
        if transcript is None:
            return None
        self._stt_providers[conversation.id] = transcript.provider or self.stt.name
        return transcript

    async def release(self, conversation_id: str) -> None:
        self._stt_providers.pop(conversation_id, None)
        await self._listener.release(conversation_id)
        await self.llm.release(conversation_id)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Text as soon as the LLM writes it, and its speech in order; the TTS is a sentence ahead of the reader."""
        await self._listener.drop_finished(conversation)
        options = replace(options, language=options.language or conversation.language)
        async with aclosing(self.llm.generate(conversation, options)) as reply:
            pipeline = _Pipeline(reply, self.tts if options.speech else None, options)
            async with aclosing(pipeline.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        stt = self._stt_providers.get(conversation.id, self.stt.name)
        llms = pipeline.summary.providers or (self.llm.name,)
        ttss = tuple(pipeline.tts_providers) or (self.tts.name,) if options.speech else ()
        yield replace(pipeline.summary, providers=(stt, *llms, *ttss))


class _Pipeline:
    """One response: a task reads the LLM, a task drives the TTS, `chunks` merges what they produce."""

    def __init__(
        self,
        reply: AsyncIterator[TextChunk | ToolCallChunk | GenerationSummary],
        tts: TTS | None,
        options: GenerateOptions,
    ) -> None:
        self.summary = GenerationSummary()
        self.tts_providers: dict[str, None] = {}
        """Names of those that spoke, in order."""
        self._reply = reply
        self._tts = tts
        self._options = options
        self._texts: asyncio.Queue[TextChunk | ToolCallChunk] = asyncio.Queue(MAX_TEXTS_AHEAD)
        self._sentences: asyncio.Queue[Sentence | None] = asyncio.Queue()
        self._speech: asyncio.Queue[SpeechChunk] = asyncio.Queue(MAX_SPEECH_AHEAD)
        self._changed = asyncio.Event()
        self._samples = 0

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """Everything but the summary. Raises what the LLM or the TTS raises."""
        work = [self._read_llm()] if self._tts is None else [self._read_llm(), self._drive_tts(self._tts)]
        tasks = [asyncio.create_task(coroutine) for coroutine in work]
        for task in tasks:
            task.add_done_callback(lambda _: self._changed.set())
        try:
            while True:
                self._changed.clear()
                # Checked before the queues: what a task put into them before it ended is still delivered.
                finished = all(task.done() for task in tasks)
                for task in tasks:
                    if task.done():
                        task.result()
                if not self._texts.empty():
                    yield self._texts.get_nowait()
                elif not self._speech.empty():
                    yield self._speech.get_nowait()
                elif finished:
                    return
                else:
                    await self._changed.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_llm(self) -> None:
        splitter = SentenceSplitter()
        async for chunk in self._reply:
            if isinstance(chunk, GenerationSummary):
                self.summary = chunk
                continue
            await self._texts.put(chunk)
            self._changed.set()
            if isinstance(chunk, TextChunk) and self._tts:
                for sentence in splitter.push(chunk.text):
                    self._sentences.put_nowait(sentence)
        for sentence in splitter.flush() if self._tts else ():
            self._sentences.put_nowait(sentence)
        self._sentences.put_nowait(None)

    async def _drive_tts(self, tts: TTS) -> None:
        while (sentence := await self._sentences.get()) is not None:
            sentence_start_ms = self._samples * 1000 // tts.rate
            timer = WordTimer(sentence.text, tts.rate)
            async with aclosing(tts.synthesize(strip_markup(sentence.text), self._options)) as chunks:
                async for chunk in chunks:
                    self.tts_providers[chunk.provider or tts.name] = None
                    words = timer.words_in(chunk)
                    await self._put_speech(chunk.pcm, words, sentence.start, sentence_start_ms)
            if rest := timer.flush():
                # The speech was shorter than estimated; 20 ms of silence carry the words that are left.
                await self._put_speech(bytes(2 * (tts.rate // 50)), rest, sentence.start, sentence_start_ms)

    async def _put_speech(self, pcm: bytes, words: tuple[Word, ...], text_start: int, start_ms: int) -> None:
        """Queue a sentence's speech, with its words shifted to their place in the response."""
        shifted = tuple(Word(word.start_ms + start_ms, word.text_end + text_start) for word in words)
        self._samples += len(pcm) // 2
        await self._speech.put(SpeechChunk(pcm, shifted))
        self._changed.set()
