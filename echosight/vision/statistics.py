"""What plain statistics say about a picture: brightness, colours, sharpness, and what moved since the last one."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from echosight.media import ImageFrame

LOOK_PX = 256
"""Longest side of what is looked at."""

MOVED = 0.08
"""Change of brightness (0-1) from which a point counts as moved; camera noise stays below."""

_HUES = ((15, "red"), (40, "orange"), (70, "yellow"), (160, "green"), (200, "turquoise"), (260, "blue"),
         (290, "purple"), (335, "pink"), (361, "red"))  # fmt: skip

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sight:
    """One picture, measured.

    `brightness` is 0-1; `colours` has the commonest first; `sharpness` is the variance of the Laplacian of the
    brightness, relative to its contrast.
    """

    width: int
    height: int
    brightness: float
    colours: tuple[str, ...]
    sharpness: float
    thumbnail: Pixels

    def moved_since(self, before: Sight) -> float:
        """The share of the picture (0-1) that changed."""
        change = np.abs(self.thumbnail - before.thumbnail)
        return float((change > MOVED).mean())


def look(frame: ImageFrame) -> Sight:
    """Measure a picture. Takes some milliseconds: not for the event loop. Raises OSError where it is damaged."""
    with Image.open(io.BytesIO(frame.data)) as image:
        # A JPEG is decoded at an eighth of its size where that is enough: 10 times faster.
        image.draft("RGB", (LOOK_PX, LOOK_PX))
        small = image.convert("RGB")
    small.thumbnail((LOOK_PX, LOOK_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    rgb = np.asarray(small, np.float32) / np.float32(255)
    grey = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    thumbnail = np.asarray(small.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32) / np.float32(255)
    return Sight(frame.width, frame.height, float(grey.mean()), _colours(rgb), _sharpness(grey), thumbnail)


def describe(now: Sight, before: Sight | None = None) -> str:
    """The measurements in a few plain sentences."""
    light = ("very dark", "dark", "of medium brightness", "bright", "very bright")[min(4, int(now.brightness * 5))]
    sharp = "blurred" if now.sharpness < 0.01 else "a little soft" if now.sharpness < 0.05 else "sharp"
    text = (
        f"The picture is {now.width} by {now.height} pixels, {light}, mostly {' and '.join(now.colours)}, and {sharp}."
    )
    if before is None:
        return text
    moved = now.moved_since(before)
    if moved < 0.02:
        return f"{text} Nothing moved since the last one."
    return f"{text} About {max(1, round(moved * 100))} percent of it changed since the last one."


def _sharpness(grey: Pixels) -> float:
    if min(grey.shape) < 3 or (contrast := float(grey.var())) < 1e-6:
        return 0.0
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var()) / contrast


def _colours(rgb: Pixels) -> tuple[str, ...]:
    """The names of the commonest colour, and of the next where it covers a fifth of the picture."""
    names = _names(rgb.reshape(-1, 3))
    found, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts)[:2]
    return tuple(str(found[i]) for n, i in enumerate(order) if n == 0 or counts[i] >= 0.2 * len(names))


def _names(rgb: Pixels) -> npt.NDArray[np.str_]:
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    red, green, blue = rgb.T
    hue = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    edges = np.array([edge for edge, _ in _HUES])
    names = np.array([name for _, name in _HUES])[np.searchsorted(edges, hue * 60, side="right")]
    names = np.where((names == "orange") & (high < 0.6), "brown", names)
    pale = chroma < 0.15 * np.maximum(high, 0.2)
    names = np.where(pale, np.where(high > 0.85, "white", "grey"), names)
    return np.where(high < 0.15, "black", names)
