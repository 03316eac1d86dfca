"""Audio, images and conversations to show a model, and a record of its replies."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from echosight.audio.pcm import pcm_to_float
from echosight.conversation import AudioPart, ImagePart, Item, Part, TextPart, pcm_part
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import ConversationCache, ConversationSnapshot
from echosight.engines.omni.generation import Generation, GenerationRequest
from echosight.engines.runtime.sampling import SamplingParams
from echosight.media import INPUT_SAMPLE_RATE, ImageFrame

SYSTEM = "You are a helpful assistant."
CLOSE = 1e-4
"""Logits that differ by no more are equal."""


def sound(seconds: float, seed: int = 0) -> bytes:
    """A warbling tone in noise, PCM16 at `INPUT_SAMPLE_RATE`; it is loudest at its beginning."""
    count = int(seconds * INPUT_SAMPLE_RATE)
    time = np.arange(count) / INPUT_SAMPLE_RATE
    loudness = 0.2 * np.clip(np.sin(2 * np.pi * 1.3 * time), 0, 1) * np.where(time < 0.5, 2.0, 1.0)
    tone = loudness * np.sin(2 * np.pi * (200 + 20 * seed + 300 * np.sin(np.pi * time)) * time)
    noise = 0.005 * np.random.default_rng(seed).standard_normal(count)
    return ((tone + noise) * 32767).astype("<i2").tobytes()


def extract_features(extractor: Any, pcm: bytes, *, zero_tail: bool) -> Any:
    """The output of a transformers feature extractor for PCM16; `zero_tail` as in `StreamingLogMel`."""
    return extractor(
        pcm_to_float(pcm),
        sampling_rate=INPUT_SAMPLE_RATE,
        padding="max_length" if zero_tail else True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )


def image_frame(seed: int = 0) -> ImageFrame:
    """Noise of 130 x 90 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return ImageFrame(data.getvalue(), "image/png", 130, 90)


def user(item_id: str, *parts: Part) -> Item:
    return Item("user", parts, item_id)


def assistant(item_id: str, text: str) -> Item:
    return Item("assistant", (AudioPart(None, 24_000, 0, text),), item_id)


def snapshot(
    *items: Item, turn: Item | None = None, system: str = SYSTEM, conversation_id: str = "talk"
) -> ConversationSnapshot:
    return ConversationSnapshot(conversation_id, items, system, turn)


FIRST = user("one", pcm_part(sound(3.4, 1)), ImagePart(image_frame(1), 3400), TextPart("look"))
SECOND = user("two", pcm_part(sound(2.6, 2)), TextPart("and now"))

GREEDY = SamplingParams()


def spoken_request(
    model: Any, max_tokens: int = 12, sampling: SamplingParams = GREEDY, speech_sampling: SamplingParams = GREEDY
) -> GenerationRequest:
    """A request for a spoken reply."""
    return GenerationRequest(sampling, max_tokens, model.speakers[0], speech_sampling, seed=7)


@dataclass
class Reply:
    """Everything that a generation produced. `kinds` has the first letter of each chunk's class."""

    text: str = ""
    pcm: bytes = b""
    kinds: str = ""
    tokens: list[int] = field(default_factory=list)
    frames: list[Any] = field(default_factory=list)
    summary: GenerationSummary | None = None

    def add(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.kinds += type(chunk).__name__[0]
            match chunk:
                case TextChunk(text):
                    self.text += text
                case SpeechChunk(pcm):
                    self.pcm += pcm
                case GenerationSummary():
                    self.summary = chunk


def run_together(runner: Any, *started: tuple[str, Generation]) -> list[Reply]:
    """Step generations, given with their conversation ids, together until all are done."""
    replies = [Reply() for _ in started]
    while not all(generation.done for _, generation in started):
        results = runner.step([generation for _, generation in started])
        for reply, chunks in zip(replies, results, strict=True):
            reply.add(chunks)
    for (conversation_id, generation), reply in zip(started, replies, strict=True):
        reply.tokens = generation.tokens
        reply.frames = list(generation.speech.talker.frames) if generation.speech else []
        runner.finish(conversation_id, [generation])
    return replies


def reply_to(runner: Any, seen: ConversationSnapshot, spoken_request: GenerationRequest) -> Reply:
    """One reply, alone."""
    return run_together(runner, (seen.id, runner.start(seen, spoken_request)))[0]


def first_logits(cache: ConversationCache, seen: ConversationSnapshot) -> torch.Tensor:
    """Logits (vocabulary,) of the reply's first token; leaves the cache as it was before the reply."""
    with torch.inference_mode():
        start, hidden = cache.begin_reply(seen, None)
        cache.context.rewind(start)
        logits: torch.Tensor = cache._model.thinker.lm_head(hidden)[0]
        return logits
