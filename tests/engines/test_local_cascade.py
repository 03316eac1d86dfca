"""A whole turn on local models: a tiny Whisper, a tiny Llama and a tiny VITS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.llm.transformers.chat import TransformersLLM, build_generator
from echosight.engines.stt.whisper import WhisperSTT
from echosight.engines.stt.whisper_decoder import Decoder, HallucinationFilter
from echosight.engines.stt.whisper_model import load_model
from echosight.engines.tts.vits import make_tts
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.conftest import Flite


@pytest.fixture
async def cascade(tmp_path: Path) -> AsyncIterator[Cascade]:
    for module in ("torch", "transformers", "faster_whisper", "ctranslate2"):
        pytest.importorskip(module)
    from tests.engines.stt.tiny_whisper import write_whisper
    from tests.engines.tiny_local import write_llama, write_vits

    folders = [tmp_path / name for name in ("whisper", "llama", "vits")]
    for folder in folders:
        folder.mkdir()
    whisper = write_whisper(folders[0])
    write_llama(folders[1])
    write_vits(folders[2])
    # A random model's segments all look like hallucinations.
    no_filter = HallucinationFilter(no_speech=2, log_probability=-99, compression_ratio=999)
    engine = Cascade(
        WhisperSTT("whisper", lambda: Decoder(load_model(str(whisper)), no_filter)),
        TransformersLLM("llama", lambda: build_generator(str(folders[1])), seed=0),
        make_tts(str(folders[2]), Settings()),
    )
    await engine.start()
    yield engine
    await engine.close()


async def test_speech_in_and_speech_out(cascade: Cascade, flite: Flite) -> None:
    conversation = Conversation(instructions="Answer in one sentence.", language="en")
    options = GenerateOptions(max_output_tokens=60, temperature=1.0)
    for text in ("hello world how are you today", "the quick brown fox jumps over the lazy dog"):
        conversation.pending_turn = turn = UserTurn()
        pcm = flite(text).pcm
        for start in range(0, len(pcm), 8_000):
            await cascade.prefill(conversation, turn.add(AudioPart(pcm[start : start + 8_000])))
        transcript = await cascade.finalize_transcript(conversation, turn)
        assert transcript is not None
        assert transcript.text
        conversation.pending_turn = None
        conversation.add(turn.to_item(transcript.text))
        chunks = [chunk async for chunk in cascade.generate(conversation, options)]
        assert any(isinstance(chunk, TextChunk) for chunk in chunks)
        assert sum(len(chunk.pcm) for chunk in chunks if isinstance(chunk, SpeechChunk)) > 8_000
        summary = chunks[-1]
        assert isinstance(summary, GenerationSummary)
        assert [name.partition(" ")[0] for name in summary.providers] == ["whisper", "llama", "vits"]
        # The prompt of the second turn begins as that of the first.
        assert summary.usage.cached >= (20 if len(conversation.items) > 1 else 0)
