"""Images of every kind, and what is no image; the truth is what the tests draw."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.base import BROKEN_IMAGE, EMPTY_FILE, IMAGE_TOO_LARGE, IMAGE_TOO_SMALL, UnusableImage
from sources.images import decode_image
from tests.helpers import encode, picture


def first_pixel(content: bytes) -> tuple[int, ...]:
    image = decode_image(content, 10_000)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def noise(mode: str, value: Any) -> PIL.Image.Image:
    return PIL.Image.new(mode, (4, 3), value)


def palette_with_transparency() -> bytes:
    image = noise("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encode(image, transparency=b"\xff\x00")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(noise("RGBA", (0, 0, 0, 0))), (255, 255, 255)),
        (encode(noise("RGBA", (200, 0, 0, 127))), (228, 128, 128)),
        (encode(noise("LA", (0, 0))), (255, 255, 255)),
        (palette_with_transparency(), (255, 255, 255)),
        (encode(noise("RGB", (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (encode(noise("I;16", 65535)), (255, 255, 255)),
        (encode(noise("I;16", 200)), (1, 1, 1)),
        (encode(noise("F", 0.5), "TIFF"), (128, 128, 128)),
        (encode(noise("I", 1000), "TIFF"), (4, 4, 4)),
        (encode(noise("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
        (encode(noise("1", 1)), (255, 255, 255)),
        (
            encode(
                noise("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[noise("RGB", 0)]
            ),
            (255, 0, 0),
        ),
    ],
)
def test_pixel_formats(content: bytes, expected: tuple[int, ...]) -> None:
    assert first_pixel(content) == expected


def test_exif_orientation() -> None:
    image = PIL.Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    places = []
    for orientation in range(1, 10):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        decoded = np.asarray(decode_image(encode(image, exif=exif), 100))
        places.append((decoded.shape[:2], *np.argwhere(decoded[..., 0] > 0)[0].tolist()))
    wide, high = (2, 4), (4, 2)
    assert places[:4] == [(wide, 0, 0), (wide, 0, 3), (wide, 1, 3), (wide, 1, 0)]
    assert places[4:] == [(high, 0, 0), (high, 0, 1), (high, 3, 1), (high, 3, 0), (wide, 0, 0)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_is_ignored() -> None:
    assert decode_image(picture(3, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 100).size == (
        6,
        4,
    )


def bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels, without the pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + picture(1)[33:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", EMPTY_FILE),
        (b"hello", BROKEN_IMAGE),
        (picture(1, "JPEG")[:300], BROKEN_IMAGE),
        (picture(1)[:45], BROKEN_IMAGE),
        (bomb(), IMAGE_TOO_LARGE),
        (encode(PIL.Image.new("L", (101, 100))), IMAGE_TOO_LARGE),
        (encode(PIL.Image.new("L", (1, 4))), IMAGE_TOO_SMALL),
        (encode(PIL.Image.new("L", (4, 1))), IMAGE_TOO_SMALL),
    ],
)
def test_unusable_images(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableImage) as raised:
        decode_image(content, 10_000)
    assert raised.value.reason == reason
    assert " at 0x" not in raised.value.detail


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(content: bytes) -> None:
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8\xff"):
        with pytest.raises(UnusableImage):
            decode_image(prefix + content, 10_000)
