from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echosight.errors import InputError
from echosight.vision.images import read_image


def picture(kind: str, width: int = 64, height: int = 48, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    gradient = Image.linear_gradient("L").resize((width, height)).convert(mode)
    gradient.save(out, kind)
    return out.getvalue()


def refusal(data: bytes, max_pixels: int = 40_000_000) -> InputError:
    with pytest.raises(InputError) as refused:
        read_image(data, max_pixels)
    assert refused.value.code == "invalid_image"
    return refused.value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (801, 601)])
def test_three_formats_come_through_unchanged(kind: str, size: tuple[int, int]) -> None:
    data = picture(kind, *size)
    frame = read_image(data)
    assert frame.data == data
    assert frame.media_type == f"image/{kind.lower()}"
    assert (frame.width, frame.height) == size


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1")]
)
def test_every_mode(kind: str, mode: str) -> None:
    assert read_image(picture(kind, mode=mode)).width == 64


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(picture(kind)).status == 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_half_a_picture_is_refused(kind: str, part: float) -> None:
    data = picture(kind, 400, 300)
    assert refusal(data[: int(len(data) * part)]).status == 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_limit_is_in_pixels(kind: str) -> None:
    assert read_image(picture(kind, 50, 20), 1000).height == 20
    assert refusal(picture(kind, 50, 20), 999).status == 413


@pytest.mark.parametrize("side", [10_000, 16_000, 2**31 - 1])
def test_a_bomb_is_known_by_its_header(side: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    assert refusal(bomb).status == 413


@given(st.binary(max_size=100), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 300))
def test_any_bytes_give_a_picture_or_a_reason(noise: bytes, kind: str, at: int) -> None:
    whole = picture(kind)
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            assert read_image(data).data == data
        except InputError as refused:
            assert refused.code == "invalid_image"
