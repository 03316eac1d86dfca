"""How much time overlapping the stages of a turn saves: `uv run benchmarks/cascade.py [--model … --stt … --tts …]`.

The same parts process the same turn twice in one run: as the cascade does it (the STT works while the user speaks, the
TTS while the LLM still writes), and one stage after the other. Without --model the LLM is a stand-in that writes
at --tokens-per-second. Times are ms after the end of speech, the median of --rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import clip
from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk, ToolCallChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade.sentences import SentenceSplitter, strip_markup
from echosight.engines.registry import load
from echosight.media import INPUT_SAMPLE_RATE
from echosight.options import GenerateOptions
from echosight.settings import Settings

CHUNK_BYTES = INPUT_SAMPLE_RATE // 50 * 2
"""20 ms."""

REPLY = (
    "Certainly. I have opened the window a little, because it has become warm in here since this morning. "
    "If it gets too cold for you, say so and I will close it again. Shall I also turn the heating down meanwhile?"
)
STAGES = ("transcript", "first text", "first speech", "last speech")

Marks = dict[str, float]


class PacedLLM:
    """A stand-in for a model: a fixed reply at a fixed speed, after a fixed latency."""

    def __init__(self, tokens_per_second: float, first_s: float) -> None:
        self.name = f"a stand-in that writes {tokens_per_second:g} tokens a second after {first_s * 1000:g} ms"
        self._pause_s = 1 / tokens_per_second
        self._first_s = first_s

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def prefill(self, conversation: Conversation, text: str) -> None: ...

    async def release(self, conversation_id: str) -> None: ...

    async def generate(
        self, conversation: Conversation, options: GenerateOptions
    ) -> AsyncGenerator[TextChunk | ToolCallChunk | GenerationSummary]:
        await asyncio.sleep(self._first_s)
        for word in REPLY.split():
            yield TextChunk(word + " ")
            # About four tokens are three words.
            await asyncio.sleep(self._pause_s * 4 / 3)


async def overlapped(engine: Cascade, pcm: bytes) -> Marks:
    """The user speaks in real time, and the STT works meanwhile."""
    conversation = Conversation(pending_turn=UserTurn())
    assert conversation.pending_turn is not None
    began = time.perf_counter()
    for start in range(0, len(pcm), CHUNK_BYTES):
        part = conversation.pending_turn.add(AudioPart(pcm[start : start + CHUNK_BYTES]))
        await engine.prefill(conversation, part)
        due = began + (start + CHUNK_BYTES) / (2 * INPUT_SAMPLE_RATE)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    end_of_speech, marks = time.perf_counter(), Marks()
    await _transcribe(engine, conversation, end_of_speech, marks)
    async with aclosing(engine.generate(conversation, GenerateOptions())) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, TextChunk):
                marks.setdefault("first text", _ms(end_of_speech))
            elif isinstance(chunk, SpeechChunk):
                marks.setdefault("first speech", _ms(end_of_speech))
                marks["last speech"] = _ms(end_of_speech)
    await engine.release(conversation.id)
    return marks


async def in_sequence(engine: Cascade, pcm: bytes) -> Marks:
    """Each stage begins when the previous one is complete."""
    conversation = Conversation(pending_turn=UserTurn())
    assert conversation.pending_turn is not None
    conversation.pending_turn.add(AudioPart(pcm))
    end_of_speech, marks = time.perf_counter(), Marks()
    await _transcribe(engine, conversation, end_of_speech, marks)
    text = ""
    async with aclosing(engine.llm.generate(conversation, GenerateOptions())) as reply:
        async for chunk in reply:
            if isinstance(chunk, TextChunk):
                marks.setdefault("first text", _ms(end_of_speech))
                text += chunk.text
    splitter = SentenceSplitter()
    for sentence in (*splitter.push(text), *splitter.flush()):
        async with aclosing(engine.tts.synthesize(strip_markup(sentence.text), GenerateOptions())) as chunks:
            async for _ in chunks:
                marks.setdefault("first speech", _ms(end_of_speech))
    marks["last speech"] = _ms(end_of_speech)
    await engine.release(conversation.id)
    return marks


async def _transcribe(engine: Cascade, conversation: Conversation, end_of_speech: float, marks: Marks) -> None:
    turn = conversation.pending_turn
    assert turn is not None
    conversation.pending_turn = None
    transcript = await engine.finalize_transcript(conversation, turn)
    conversation.add(turn.to_item(transcript.text if transcript else ""))
    marks["transcript"] = _ms(end_of_speech)


def _ms(since: float) -> float:
    return (time.perf_counter() - since) * 1000


async def measure(settings: Settings, args: argparse.Namespace, pcm: bytes) -> None:
    engine = load(settings)
    if not isinstance(engine, Cascade):
        sys.exit(f"{engine.name} is not a cascade")
    if settings.model is None:
        engine.llm = PacedLLM(args.tokens_per_second, args.first_token_ms / 1000)
    await engine.start()
    print(f"STT  {engine.stt.name}\nLLM  {engine.llm.name}\nTTS  {engine.tts.name}")
    print(f"{len(pcm) / 2 / INPUT_SAMPLE_RATE:.1f} s of speech, {args.rounds} rounds\n")
    try:
        await in_sequence(engine, pcm)
        rounds = [(await overlapped(engine, pcm), await in_sequence(engine, pcm)) for _ in range(args.rounds)]
    finally:
        await engine.close()
    print(f"{'ms after the end of speech':28}{'overlapped':>12}{'in sequence':>14}{'ratio':>9}")
    for stage in STAGES:
        ours, theirs = (statistics.median(marks[stage] for marks in side) for side in zip(*rounds, strict=True))
        print(f"{stage:28}{ours:12.0f}{theirs:14.0f}{theirs / ours:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, help="a WAV file of what the user says (default: espeak-ng speaks)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens-per-second", type=float, default=40)
    parser.add_argument("--first-token-ms", type=float, default=100)
    args, rest = parser.parse_known_args()
    settings = Settings.load(rest)
    speech = clip(args.recording)
    asyncio.run(measure(settings, args, speech.samples[: speech.speech].tobytes()))


if __name__ == "__main__":
    main()
