"""Sounds and pictures to show a model, conversations of them, and what its answers come to."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from echosight.conversation import AudioPart, ImagePart, Item, Part, TextPart
from echosight.engines import Chunk, GenerationSummary, SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import Memory, View
from echosight.engines.omni.generation import Answer, Wish
from echosight.engines.runtime.sampling import SamplingParams
from echosight.media import INPUT_SAMPLE_RATE, ImageFrame

SYSTEM = "You are a helpful assistant."
CLOSE = 1e-4
"""Logits that differ by no more are the same."""


def sound(seconds: float, seed: int = 0) -> bytes:
    """A warbling tone in noise, PCM16 at `INPUT_SAMPLE_RATE`; its loudest moment is at its beginning."""
    count = int(seconds * INPUT_SAMPLE_RATE)
    at = np.arange(count) / INPUT_SAMPLE_RATE
    loudness = 0.2 * np.clip(np.sin(2 * np.pi * 1.3 * at), 0, 1) * np.where(at < 0.5, 2.0, 1.0)
    tone = loudness * np.sin(2 * np.pi * (200 + 20 * seed + 300 * np.sin(np.pi * at)) * at)
    noise = 0.005 * np.random.default_rng(seed).standard_normal(count)
    return ((tone + noise) * 32767).astype("<i2").tobytes()


def photo(seed: int = 0) -> ImageFrame:
    pixels = np.random.default_rng(seed).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return ImageFrame(data.getvalue(), "image/png", 130, 90)


def heard(pcm: bytes) -> AudioPart:
    return AudioPart(pcm, INPUT_SAMPLE_RATE, len(pcm) * 500 // INPUT_SAMPLE_RATE)


def user(name: str, *parts: Part) -> Item:
    return Item("user", parts, name)


def spoken(name: str, text: str) -> Item:
    return Item("assistant", (AudioPart(None, 24_000, 0, text),), name)


def view(*items: Item, turn: Item | None = None, system: str = SYSTEM, name: str = "talk") -> View:
    return View(name, items, system, turn)


FIRST = user("one", heard(sound(3.4, 1)), ImagePart(photo(1), 3400), TextPart("look"))
SECOND = user("two", heard(sound(2.6, 2)), TextPart("and now"))

GREEDY = SamplingParams()


def wish(model: Any, tokens: int = 12, taste: SamplingParams = GREEDY, speech_taste: SamplingParams = GREEDY) -> Wish:
    """An answer, spoken."""
    return Wish(taste, tokens, model.speakers[0], speech_taste, seed=7)


@dataclass
class Said:
    """What came of an answer."""

    text: str = ""
    pcm: bytes = b""
    kinds: str = ""
    tokens: list[int] = field(default_factory=list)
    frames: list[Any] = field(default_factory=list)
    summary: GenerationSummary | None = None

    def add(self, pieces: list[Chunk]) -> None:
        for piece in pieces:
            self.kinds += type(piece).__name__[0]
            match piece:
                case TextChunk(text):
                    self.text += text
                case SpeechChunk(pcm):
                    self.pcm += pcm
                case GenerationSummary():
                    self.summary = piece


def run(stage: Any, *begun: tuple[str, Answer]) -> list[Said]:
    """Advance answers together to their end."""
    results = [Said() for _ in begun]
    while not all(answer.done for _, answer in begun):
        for said, pieces in zip(results, stage.advance([answer for _, answer in begun]), strict=True):
            said.add(pieces)
    for (name, answer), said in zip(begun, results, strict=True):
        said.tokens = answer.tokens
        said.frames = list(answer.speech.mouth.frames) if answer.speech else []
        stage.end(name, [answer])
    return results


def ask(stage: Any, seen: View, wanted: Wish) -> Said:
    """One answer, alone."""
    return run(stage, (seen.id, stage.begin(seen, wanted)))[0]


def first_logits(memory: Memory, seen: View) -> torch.Tensor:
    """Logits of the reply's first token; the memory is left as before the reply."""
    with torch.inference_mode():
        start, hidden = memory.prepare_reply(seen, None)
        memory.context.back_to(start)
        logits: torch.Tensor = memory._model.thinker.lm_head(hidden)[0]
        return logits
