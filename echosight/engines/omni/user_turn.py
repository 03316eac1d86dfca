"""Writes the user's turn to a context while the user speaks."""

from __future__ import annotations

from zlib import crc32

import torch

from echosight.audio.pcm import pcm_to_float
from echosight.conversation import AudioPart, ImagePart, Item, TextPart, ToolResult
from echosight.engines.omni.context import Context
from echosight.engines.omni.models.segments import ImageTokens
from echosight.media import INPUT_SAMPLE_RATE

MIN_FRAMES = 4
"""Mel frames. The encoders cannot take less than 40 ms, and so little speech holds no word."""
ROLE = "user"


class CachedUserTurn:
    """Writes a turn in whole windows of the audio encoder.

    Windows do not attend to each other, so the tokens and their values equal those of the whole turn encoded at once.
    The order of the tokens depends on the finished item alone, not on the packets: an image shown at `at_ms` is in
    front of the first window that begins then or later (between two windows the speech is closed and opened again), or
    behind the speech; text is last.
    """

    def __init__(self, context: Context, item_id: str) -> None:
        self.id = item_id
        self.start = context.end
        self._context = context
        self._tokens = context.model.tokens
        self._encoders = context.model.encoders
        self._mel = self._encoders.new_mel()
        self._waiting: list[tuple[int, ImageTokens]] = []
        """(sample at which it was shown, image) of images that are not yet written."""
        self._images: list[ImagePart] = []
        self._checksum = 0
        self._windows = 0
        self._has_header = False
        self._in_speech = False

    @property
    def samples(self) -> int:
        """Samples of speech that were taken."""
        return self._mel.samples

    @property
    def samples_needed(self) -> int:
        """Samples, counted from the first of the turn, that complete the next window."""
        return self._mel.samples_needed

    def catch_up(self, item: Item) -> None:
        """Take everything of the pending turn, given as an item, that was not taken before. Raises `ContextFull`."""
        for part in list(item.parts_of(ImagePart))[len(self._images) :]:
            self._add_image(part)
        audio = item.audio
        if audio is not None and audio.pcm is not None:
            new = audio.pcm[2 * self.samples :]
            self._checksum = crc32(new, self._checksum)
            for frames in self._mel.push(_to_samples(new, audio.rate)):
                self._write_window(frames)

    def is_prefix_of(self, item: Item) -> bool:
        """Whether the turn as far as it was taken is the beginning of `item`."""
        pcm = item.audio.pcm if item.audio is not None else None
        taken = memoryview(pcm or b"")[: 2 * self.samples]
        same_speech = len(taken) == 2 * self.samples and crc32(taken) == self._checksum
        same_images = list(item.parts_of(ImagePart))[: len(self._images)] == self._images
        return item.id == self.id and same_speech and same_images

    def finish(self, item: Item) -> None:
        """Write the rest of the turn, now an item; computed with the context's next flush. Raises `ContextFull`."""
        self.catch_up(item)
        self._write_tail()
        for text in _texts(item):
            self._write(self._tokens.encode(text))
        self._write(self._tokens.footer)

    def _add_image(self, part: ImagePart) -> None:
        """Encode an image now; it is written at its place in the speech."""
        self._waiting.append((part.at_ms * INPUT_SAMPLE_RATE // 1000, self._encoders.encode_image(part.frame)))
        self._images.append(part)

    def _write_window(self, frames: torch.Tensor) -> None:
        self._write_images(self._windows * self._encoders.window * self._encoders.hop)
        self._write_speech(frames)
        self._windows += 1

    def _write_tail(self) -> None:
        self._write_images(self._windows * self._encoders.window * self._encoders.hop)
        frames = self._mel.flush()
        if len(frames) >= MIN_FRAMES:
            self._write_speech(frames)
        self._end_speech()
        self._write_images(None)

    def _write_speech(self, frames: torch.Tensor) -> None:
        if not self._in_speech:
            self._write((self._tokens.audio_start,))
            self._in_speech = True
        self._context.write_speech(self._encoders.encode_speech(frames), ROLE)

    def _end_speech(self) -> None:
        if self._in_speech:
            self._write((self._tokens.audio_end,))
            self._in_speech = False

    def _write_images(self, sample: int | None) -> None:
        """Write the images shown up to `sample`; None means all."""
        due = [image for start, image in self._waiting if sample is None or start <= sample]
        self._waiting = [(start, image) for start, image in self._waiting if sample is not None and start > sample]
        if due:
            self._end_speech()
            self._write(())
        for image in due:
            self._context.write_image(image, ROLE)

    def _write(self, ids: tuple[int, ...]) -> None:
        """Write tokens, behind the message's header if it is not written yet."""
        if not self._has_header:
            ids = (*self._tokens.header(ROLE), *ids)
            self._has_header = True
        if ids:
            self._context.write(ids, ROLE)


def _texts(item: Item) -> list[str]:
    """The turn's texts. Speech whose samples were dropped is replaced by its transcript."""
    texts = []
    for part in item.parts:
        match part:
            case TextPart(text):
                texts.append(text)
            case AudioPart(pcm=None, transcript=str(text)):
                texts.append(text)
            case ToolResult(_, output):
                texts.append(f"<tool_response>\n{output}\n</tool_response>")
    return texts


def _to_samples(pcm: bytes, rate: int) -> torch.Tensor:
    """PCM16 at `rate` Hz as float32 samples (n,) at `INPUT_SAMPLE_RATE`."""
    samples = torch.from_numpy(pcm_to_float(pcm))
    if rate != INPUT_SAMPLE_RATE:
        count = len(samples) * INPUT_SAMPLE_RATE // rate
        samples = torch.nn.functional.interpolate(samples[None, None], count, mode="linear")[0, 0]
    return samples
