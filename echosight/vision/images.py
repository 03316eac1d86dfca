"""Pictures as they come from a client: recognised, bounded and proven decodable before anything else touches them."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from echosight.errors import InputError
from echosight.media import ImageFrame

FORMATS = ("JPEG", "PNG", "WEBP")


def read_image(data: bytes, max_pixels: int = 40_000_000) -> ImageFrame:
    """An encoded JPEG, PNG or WebP, checked to be whole.

    Raises `InputError` ``invalid_image``: status 413 beyond `max_pixels`, which the header alone decides.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit only warns; ours is below, before a single pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _invalid("Not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise _too_large(max_pixels) from error
    except Exception as error:
        # A plug-in of Pillow raises whatever a broken file provokes: OSError, SyntaxError, struct.error…
        raise _invalid("Broken picture") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(max_pixels)
        _decode(image)
    return ImageFrame(data, Image.MIME[image.format or ""], width, height)


def _decode(image: Image.Image) -> None:
    # At an eighth of its size a JPEG is read to its end without computing most of its pixels.
    image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))
    try:
        image.load()
    except Exception as error:
        raise _invalid("Broken or truncated picture") from error


def _invalid(message: str) -> InputError:
    return InputError(message, code="invalid_image")


def _too_large(max_pixels: int) -> InputError:
    return InputError(f"Picture of more than {max_pixels} pixels", code="invalid_image", status=413)
