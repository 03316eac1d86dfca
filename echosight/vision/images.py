"""Images that clients send: format, size and data are checked before any other module uses them."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from echosight.errors import InputError
from echosight.media import ImageFrame

__all__ = ["FORMATS", "read_image"]

FORMATS = ("JPEG", "PNG", "WEBP")

HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""Brands of HEIF files (ISO/IEC 23008-12), which iPhones write."""

ORIENTATION_TAG = 0x0112
"""EXIF: how the camera was held, 1 (upright) to 8."""


def read_image(data: bytes, max_pixels: int = 40_000_000) -> ImageFrame:
    """A complete JPEG, PNG or WebP file as an `ImageFrame`. `data` stays as it is, but a photo that its EXIF tag calls
    turned or mirrored is encoded again upright: models read the pixels and not the tag.

    Raises `InputError` ``invalid_image``, with status 413 for more than `max_pixels`. The header is enough to decide
    that, so that no pixel of such an image is decoded.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is only a warning: ours follows, before any pixel is decoded. So is damaged EXIF data.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
            raise _invalid("HEIC images are not supported; send JPEG, PNG or WebP") from error
        raise _invalid("Unsupported image format; expected JPEG, PNG or WebP") from error
    except Image.DecompressionBombError as error:
        raise _too_large(max_pixels) from error
    except Exception as error:
        # For a damaged file, Pillow's plug-ins raise many types: OSError, SyntaxError, struct.error…
        raise _invalid("Damaged image: its header cannot be read") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(max_pixels)
        if _orientation(image) in range(2, 9):
            return _upright(image)
        _decode(image)
    return ImageFrame(data, Image.MIME[image.format or ""], width, height)


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:
        # Pillow raises many types for damaged EXIF data, and viewers show such a file as it is.
        return 1


def _upright(image: Image.Image) -> ImageFrame:
    """The image, turned as its EXIF tag says, in the same format."""
    file = io.BytesIO()
    try:
        turned = ImageOps.exif_transpose(image)
        turned.save(file, image.format, quality=92)
    except Exception as error:
        raise _invalid("Damaged or truncated image") from error
    return ImageFrame(file.getvalue(), Image.MIME[image.format or ""], turned.width, turned.height)


def _decode(image: Image.Image) -> None:
    # At an eighth of its size, a JPEG is read to its end but most of its pixels are not computed.
    image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))
    try:
        image.load()
    except Exception as error:
        raise _invalid("Damaged or truncated image") from error


def _invalid(message: str) -> InputError:
    return InputError(message, code="invalid_image")


def _too_large(max_pixels: int) -> InputError:
    return InputError(f"Image has more than {max_pixels} pixels", code="invalid_image", status=413)
