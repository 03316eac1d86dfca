"""The encoders of audio and images, with the settings of the checkpoint's processors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from echosight.engines.omni.models.mel import StreamingLogMel
from echosight.engines.omni.models.segments import ImageTokens
from echosight.media import ImageFrame


class Encoders:
    """The encoders of a loaded `thinker`. `extractor` is the feature extractor of audio, `images` the image processor.

    `window` is the length of an audio encoder window in mel frames; `zero_tail` says what the feature extractor assumes
    behind the end of the audio (see `StreamingLogMel`).
    """

    def __init__(self, thinker: Any, extractor: Any, images: Any, *, window: int, zero_tail: bool) -> None:
        self.window = window
        self.zero_tail = zero_tail
        self.hop: int = extractor.hop_length
        """Samples between two mel frames."""
        self.images = images
        self._thinker = thinker
        self._n_fft: int = extractor.n_fft
        self._filters = torch.from_numpy(np.asarray(extractor.mel_filters)).float()

    def new_mel(self) -> StreamingLogMel:
        """A spectrogram for the audio of one turn."""
        return StreamingLogMel(
            self._filters, n_fft=self._n_fft, hop=self.hop, window=self.window, zero_tail=self.zero_tail
        )

    def encode_speech(self, frames: torch.Tensor) -> torch.Tensor:
        """Mel frames (at most window, mels) float32 on the CPU to features (n, hidden) on the model's device."""
        lengths = torch.tensor([len(frames)], device=self._thinker.device)
        features = frames.T.to(self._thinker.device, self._thinker.dtype)
        encoded: torch.Tensor = self._thinker.model.audio_tower(features, feature_lens=lengths).last_hidden_state
        return encoded

    def encode_image(self, frame: ImageFrame) -> ImageTokens:
        """The features of a still image. Raises OSError where it cannot be decoded."""
        with Image.open(io.BytesIO(frame.data)) as image:
            pixels = self.images(images=[image.convert("RGB")], return_tensors="pt")
        grid, device = pixels["image_grid_thw"], self._thinker.device
        output = self._thinker.get_image_features(pixels["pixel_values"].to(device), grid.to(device), return_dict=True)
        deepstack = tuple(_concat(layer) for layer in getattr(output, "deepstack_features", None) or ())
        merge = self.images.merge_size
        return ImageTokens(_concat(output.pooler_output), deepstack, int(grid[0, 1]) // merge, int(grid[0, 2]) // merge)


def _concat(features: Any) -> torch.Tensor:
    """Some versions of transformers give one tensor for each image, in a tuple; here there is one image."""
    joined: torch.Tensor = torch.cat(tuple(features)) if isinstance(features, tuple | list) else features
    return joined
