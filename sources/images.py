"""Images: from the bytes of a file to upright RGB pixels, or the reason why not."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image

from sources.base import (
    BROKEN_IMAGE,
    EMPTY_FILE,
    FORMAT_NOT_READ,
    IMAGE_TOO_LARGE,
    IMAGE_TOO_SMALL,
    UnusableImage,
)
from sources.image_files import is_heif, is_lfs_pointer

try:  # an extra, see requirements-heif.txt
    import pillow_heif
except ImportError:
    HAS_HEIF = False
else:
    HAS_HEIF = True
    pillow_heif.register_heif_opener()

# What is wrong with an image is listed with its pairs; Pillow's warnings would only repeat it.
warnings.filterwarnings("ignore", module=r"PIL\.")
MIN_SIDE = 2  # pixels; what is narrower is a tracking pixel or a rule, not a picture

# Others are refused: some make Pillow call programs, or unpack an image larger than they claim.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")

# The limit is that of `decode_image`, which looks at the header first; Pillow's own cannot be more
# than a fixed number.
PIL.Image.MAX_IMAGE_PIXELS = None
PIL.Image.init()
_FORMATS = [name for name in IMAGE_FORMATS if name in PIL.Image.OPEN]
_UPRIGHT = {  # EXIF orientation: what brings the picture upright
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


def decode_image(data: bytes, max_pixels: int) -> PIL.Image.Image:
    """The first frame of an image file, upright, RGB, transparency laid over white.

    Args:
        data: the file's bytes.
        max_pixels: width times height above which the header alone is read.

    Raises:
        UnusableImage: empty file, broken image, image too large or too small, or of a format that
            is not read.
    """
    if not data:
        raise UnusableImage(EMPTY_FILE)
    if is_lfs_pointer(data):
        raise UnusableImage(FORMAT_NOT_READ, "a pointer of Git LFS; git lfs pull fetches the image")
    if is_heif(data) and not HAS_HEIF:
        raise UnusableImage(
            FORMAT_NOT_READ, "HEIC; pip install -r requirements-heif.txt (pillow-heif) reads it"
        )
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise UnusableImage(IMAGE_TOO_LARGE, f"{image.width} x {image.height}")
        if min(image.size) < MIN_SIDE:
            size = f"{image.width} x {image.height}"
            raise UnusableImage(IMAGE_TOO_SMALL, f"{size}: a side has fewer than {MIN_SIDE} pixels")
        image.load()
        return _to_rgb(_upright(image))
    except UnusableImage:
        raise
    except Exception as error:
        # Damaged bytes make decoders raise nearly anything: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error. The message may hold an address, which differs by run.
        detail = re.sub(r"<[^>]* at 0x[0-9a-fA-F]+>", "data", str(error))
        raise UnusableImage(BROKEN_IMAGE, f"{type(error).__name__}: {detail}") from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing about the picture
        return image
    return image if method is None else image.transpose(method)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scale_to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, "white")
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _scale_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """A deep grey image over its full scale; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    scales = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    full = next((scale for scale in scales if values.max() <= scale), values.max())
    return PIL.Image.fromarray((values.clip(0, full) * (255 / full)).round().astype(np.uint8))


# --- What readers hand over -----------------------------------------------------------------------


@runtime_checkable  # types are checked while the tests run
class FoundImage(Protocol):
    """An image that can be used, in whatever process it was read."""

    @property
    def sha256(self) -> str:
        """Of the image file, hexadecimal."""
        ...

    @property
    def pixels(self) -> np.ndarray | None:
        """What is handed on of it; None where it was."""
        ...

    def pair_id(self, caption: str) -> str:
        """`base.pair_id`."""
        ...

    def without_pixels(self) -> FoundImage:
        """The same for whoever needs its names alone."""
        ...


@dataclass(frozen=True)
class DecodedImage:
    """An image file that was decoded: its hash, and its pixels until they were handed on."""

    hash: Any  # hashlib's object, which has seen the image file
    pixels: np.ndarray | None

    @property
    def sha256(self) -> str:
        """Of the image file, hexadecimal."""
        return str(self.hash.hexdigest())

    def without_pixels(self) -> DecodedImage:
        """The same for whoever needs its hash alone."""
        return DecodedImage(self.hash, None)

    def pair_id(self, caption: str) -> str:
        """`pair_id` without the image file at hand."""
        both = self.hash.copy()
        both.update(caption.encode())
        return str(both.hexdigest()[:32])


def decode_pixels(
    preprocess: Callable[[PIL.Image.Image], np.ndarray],
    max_pixels: int,
    watch: Callable[[bytes, PIL.Image.Image], None] | None = None,
) -> Callable[[bytes], np.ndarray]:
    """What makes an encoder's input of an image file; it raises `UnusableImage`.

    `watch` is shown every file and its image, in whatever thread decodes it.
    """

    def decode(data: bytes) -> np.ndarray:
        image = decode_image(data, max_pixels)
        if watch is not None:
            watch(data, image)
        try:
            return preprocess(image)
        except MemoryError as error:  # any other error of it is the program's, not the image's
            raise UnusableImage(IMAGE_TOO_LARGE, "it does not fit into memory") from error

    return decode
