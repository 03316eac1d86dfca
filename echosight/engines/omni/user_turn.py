"""The user's turn as tokens, written while it still goes on."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch

from echosight.conversation import AudioPart, ImagePart, Item, TextPart, ToolResult
from echosight.engines.omni.context import Context, Picture
from echosight.media import INPUT_SAMPLE_RATE

MIN_FRAMES = 4
"""Less than 40 ms at the end of the speech say nothing, and the encoders cannot take less."""
ROLE = "user"


class CachedUserTurn:
    """Writes a turn to its context in whole windows of the audio encoder. Windows do not see each other, so the
    tokens and their values are those of the whole turn encoded at once.

    The order is a function of the finished item alone, however the turn came: a picture shown at `at_ms` stands before
    the first window that begins then or later (between two windows the speech is closed and opened again), or
    behind the speech; text comes last.
    """

    def __init__(self, context: Context, item_id: str) -> None:
        self.id = item_id
        self.start = context.at
        self._context = context
        self._model = context.model
        self._mel = self._model.new_mel()
        self._waiting: list[tuple[int, Picture]] = []
        self._shown: list[ImagePart] = []
        self._sum = 0
        self._windows = 0
        self._begun = False
        self._speaking = False

    @property
    def heard(self) -> int:
        """Samples taken."""
        return self._mel.samples

    @property
    def needed(self) -> int:
        """Samples, from the first of the turn, with which there is something to compute."""
        return self._mel.needed

    def _show(self, part: ImagePart) -> None:
        """A picture: encoded now, written at its place."""
        self._waiting.append((part.at_ms * INPUT_SAMPLE_RATE // 1000, self._model.encode_picture(part.frame)))
        self._shown.append(part)

    def catch_up(self, item: Item) -> None:
        """Take everything of the turn so far (as the item that it would be now) that was not taken yet."""
        for part in list(item.parts_of(ImagePart))[len(self._shown) :]:
            self._show(part)
        said = item.audio
        if said is not None and said.pcm is not None:
            new = said.pcm[2 * self.heard :]
            self._sum = crc32(new, self._sum)
            for frames in self._mel.push(_floats(new, said.rate)):
                self._write_window(frames)

    def fits(self, item: Item) -> bool:
        """Whether what was taken so far is the beginning of `item`."""
        pcm = item.audio.pcm if item.audio is not None else None
        heard = memoryview(pcm or b"")[: 2 * self.heard]
        same = len(heard) == 2 * self.heard and crc32(heard) == self._sum
        return item.id == self.id and same and list(item.parts_of(ImagePart))[: len(self._shown)] == self._shown

    def finish(self, item: Item) -> None:
        """Write the rest of the turn, now that it is an item. Nothing is computed before the context is flushed."""
        self.catch_up(item)
        self._write_tail()
        for text in _texts(item):
            self._write(self._model.tokens.encode(text))
        self._write(self._model.tokens.footer)

    def _write_window(self, frames: torch.Tensor) -> None:
        self._place_pictures(self._windows * self._model.window * self._model.hop)
        self._write_speech(frames)
        self._windows += 1

    def _write_tail(self) -> None:
        self._place_pictures(self._windows * self._model.window * self._model.hop)
        frames = self._mel.finish()
        if len(frames) >= MIN_FRAMES:
            self._write_speech(frames)
        self._close_speech()
        self._place_pictures(None)

    def _write_speech(self, frames: torch.Tensor) -> None:
        if not self._speaking:
            self._write((self._model.tokens.audio_start,))
            self._speaking = True
        self._context.write_speech(self._model.encode_speech(frames), ROLE)

    def _close_speech(self) -> None:
        if self._speaking:
            self._write((self._model.tokens.audio_end,))
            self._speaking = False

    def _place_pictures(self, sample: int | None) -> None:
        """Write the pictures shown up to `sample` (None: all)."""
        due = [picture for at, picture in self._waiting if sample is None or at <= sample]
        self._waiting = [(at, picture) for at, picture in self._waiting if sample is not None and at > sample]
        if due:
            self._close_speech()
            self._write(())
        for picture in due:
            self._context.write_picture(picture, ROLE)

    def _write(self, ids: tuple[int, ...]) -> None:
        if not self._begun:
            ids = (*self._model.tokens.header(ROLE), *ids)
            self._begun = True
        if ids:
            self._context.write(ids, ROLE)


def _texts(item: Item) -> list[str]:
    """What the turn holds in writing. Speech whose samples were let go is read from its transcript."""
    texts = []
    for part in item.parts:
        match part:
            case TextPart(text):
                texts.append(text)
            case AudioPart(pcm=None, transcript=str(said)):
                texts.append(said)
            case ToolResult(_, output):
                texts.append(f"<tool_response>\n{output}\n</tool_response>")
    return texts


def _floats(pcm: bytes, rate: int = INPUT_SAMPLE_RATE) -> torch.Tensor:
    samples = torch.from_numpy(np.frombuffer(pcm, "<i2").astype("f4") / 32768.0)
    if rate != INPUT_SAMPLE_RATE:
        count = len(samples) * INPUT_SAMPLE_RATE // rate
        samples = torch.nn.functional.interpolate(samples[None, None], count, mode="linear")[0, 0]
    return samples
