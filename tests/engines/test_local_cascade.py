"""A whole turn on local parts: tiny Whisper hears, tiny Llama answers, tiny VITS speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, UserTurn
from echosight.engines import GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.cascade.engine import Cascade
from echosight.engines.llm.transformers.chat import TransformersLLM, build_generator
from echosight.engines.stt.whisper import Decoder, Guards, WhisperSTT, read_model
from echosight.engines.tts.vits import voice
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
    # Random weights are sure of nothing.
    sure = Guards(no_speech=2, log_probability=-99, compression_ratio=999)
    made = Cascade(
        WhisperSTT("whisper", lambda: Decoder(read_model(str(whisper)), sure)),
        TransformersLLM("llama", lambda: build_generator(str(folders[1])), seed=0),
        voice(str(folders[2]), Settings()),
    )
    await made.start()
    yield made
    await made.close()


async def test_speech_in_and_speech_out(cascade: Cascade, flite: Flite) -> None:
    conversation = Conversation(instructions="Answer in one sentence.", language="en")
    options = GenerateOptions(max_output_tokens=60, temperature=1.0)
    for said in ("hello world how are you today", "the quick brown fox jumps over the lazy dog"):
        conversation.pending_turn = turn = UserTurn()
        pcm = flite(said).pcm
        for at in range(0, len(pcm), 8_000):
            await cascade.prefill(conversation, turn.add(AudioPart(pcm[at : at + 8_000])))
        transcript = await cascade.finalize_transcript(conversation, turn)
        assert transcript is not None
        assert transcript.text
        conversation.pending_turn = None
        conversation.add(turn.to_item(transcript.text))
        pieces = [piece async for piece in cascade.generate(conversation, options)]
        assert any(isinstance(piece, TextChunk) for piece in pieces)
        assert sum(len(piece.pcm) for piece in pieces if isinstance(piece, SpeechChunk)) > 8_000
        summary = pieces[-1]
        assert isinstance(summary, GenerationSummary)
        assert [name.partition(" ")[0] for name in summary.providers] == ["whisper", "llama", "vits"]
        # The second turn begins as the first did.
        assert summary.usage.cached >= (20 if len(conversation.items) > 1 else 0)
