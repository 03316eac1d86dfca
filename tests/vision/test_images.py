from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps

from echosight.errors import InputError
from echosight.vision.images import HEIC_BRANDS, ORIENTATION_TAG, read_image


def image_file(kind: str, width: int = 64, height: int = 48, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    gradient = Image.linear_gradient("L").resize((width, height)).convert(mode)
    gradient.save(out, kind)
    return out.getvalue()


def input_error(data: bytes, max_pixels: int = 40_000_000) -> InputError:
    with pytest.raises(InputError) as refused:
        read_image(data, max_pixels)
    assert refused.value.code == "invalid_image"
    return refused.value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (801, 601)])
def test_jpeg_png_and_webp_are_accepted_unchanged(kind: str, size: tuple[int, int]) -> None:
    data = image_file(kind, *size)
    frame = read_image(data)
    assert frame.data == data
    assert frame.media_type == f"image/{kind.lower()}"
    assert (frame.width, frame.height) == size


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1")]
)
def test_every_colour_mode_is_accepted(kind: str, mode: str) -> None:
    assert read_image(image_file(kind, mode=mode)).width == 64


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert input_error(image_file(kind)).status == 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_a_truncated_image_is_refused(kind: str, part: float) -> None:
    data = image_file(kind, 400, 300)
    assert input_error(data[: int(len(data) * part)]).status == 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_above_the_pixel_limit_are_refused(kind: str) -> None:
    assert read_image(image_file(kind, 50, 20), 1000).height == 20
    assert input_error(image_file(kind, 50, 20), 999).status == 413


@pytest.mark.parametrize("side", [10_000, 16_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    assert input_error(bomb).status == 413


@given(st.binary(max_size=100), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 300))
def test_any_bytes_give_an_image_or_an_input_error(noise: bytes, kind: str, start: int) -> None:
    whole = image_file(kind)
    for data in (noise, whole[:start] + noise + whole[start + len(noise) :]):
        try:
            assert read_image(data).data == data
        except InputError as refused:
            assert refused.code == "invalid_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_is_turned_as_its_exif_tag_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    photo = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    out = io.BytesIO()
    photo.save(out, kind, exif=exif)
    frame = read_image(out.getvalue())
    expected = ImageOps.exif_transpose(Image.open(out)).convert("L")
    with Image.open(io.BytesIO(frame.data)) as upright:
        assert upright.getexif().get(ORIENTATION_TAG, 1) == 1
        assert (upright.size, upright.format) == (expected.size, kind)
        assert (frame.width, frame.height) == upright.size
        difference = ImageChops.difference(upright.convert("L"), expected)
    assert difference.point(lambda level: 255 if level > 30 else 0).getbbox() is None


@pytest.mark.parametrize("tag", [0, 1, 9, 60_000])
def test_a_photo_that_is_upright_or_whose_tag_means_nothing_stays_as_it_is(tag: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = tag
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "JPEG", exif=exif)
    assert read_image(out.getvalue()).data == out.getvalue()


def test_damaged_exif_data_does_no_harm() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(out.getvalue()).width == 64


@pytest.mark.parametrize("brand", HEIC_BRANDS)
def test_heic_is_refused_by_name(brand: bytes) -> None:
    assert "HEIC" in input_error(b"\x00\x00\x00\x18ftyp" + brand + bytes(64)).message
