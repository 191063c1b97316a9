"""Images: from the bytes of a file to upright RGB pixels, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image

from sources.base import (
    BROKEN_IMAGE,
    EMPTY_FILE,
    FORMAT_NOT_READ,
    IMAGE_TOO_LARGE,
    IMAGE_TOO_SMALL,
    MISSING_FILE,
    UNREADABLE_FILE,
    ImageRecord,
    UnusableImage,
)
from sources.image_files import is_heif, is_lfs_pointer
from sources.pixels import MAX_ASPECT_RATIO, Resizing
from sources.places import StorageGoneError

try:  # an extra, see requirements-heif.txt
    import pillow_heif
except ImportError:
    HAS_HEIF = False
else:
    HAS_HEIF = True
    pillow_heif.register_heif_opener()

# What is wrong with an image is listed with its pairs; Pillow's warnings would only repeat it.
warnings.filterwarnings("ignore", module=r"PIL\.")
MOST_PLAIN_PIXELS = 2**24  # a larger JPEG is best decoded at a part of its size
_END_OF_JPEG = b"\xff\xd9"
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
    with _naming_damage():
        image = _open(data, max_pixels)
        image.load()
        return _to_rgb(_upright(image))


def decode_resized(
    data: bytes, max_pixels: int, resizing: Resizing
) -> tuple[np.ndarray, PIL.Image.Image]:
    """The pixels that `resizing` makes of an image file, and the image that it was shown.

    A JPEG much larger than its pixels is decoded at a part of its size, see `sources.pixels`.

    Raises:
        UnusableImage: as `decode_image` does, or resizing it needs too much memory.
    """
    with _naming_damage():
        image = _open(data, max_pixels)
        full, box = image.size, _draft(image, resizing)
        image.load()
        image = _to_rgb(_upright(image))
    with _naming_lack_of_memory():
        return resizing(image, box, None if box is None else full), image


def _draft(image: PIL.Image.Image, resizing: Resizing) -> tuple[float, float, float, float] | None:
    """Have a JPEG decoded no larger than needed; the part of it that shows the whole picture.

    None where it is decoded in full. One that has to be turned is, which keeps the part simple.
    """
    least = resizing.draft_size(image.size) if image.format == "JPEG" else None
    if least is None or any(side < 2 * most for side, most in zip(image.size, least, strict=True)):
        return None
    if image.mode not in ("RGB", "L") or _turn(image) is not None:
        return None
    drafted = image.draft(None, least)
    return None if drafted is None else drafted[1]


def _open(data: bytes, max_pixels: int) -> PIL.Image.Image:
    """An image of which the header alone was read."""
    if not data:
        raise UnusableImage(EMPTY_FILE)
    if is_lfs_pointer(data):
        raise UnusableImage(FORMAT_NOT_READ, "a pointer of Git LFS; git lfs pull fetches the image")
    if is_heif(data) and not HAS_HEIF:
        raise UnusableImage(
            FORMAT_NOT_READ, "HEIC; pip install -r requirements-heif.txt (pillow-heif) reads it"
        )
    image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > max_pixels:
        raise UnusableImage(IMAGE_TOO_LARGE, f"{image.width} x {image.height}")
    if min(image.size) < MIN_SIDE:
        size = f"{image.width} x {image.height}"
        raise UnusableImage(IMAGE_TOO_SMALL, f"{size}: a side has fewer than {MIN_SIDE} pixels")
    return image


def is_plain_jpeg(data: bytes, max_pixels: int) -> bool:
    """Whether any decoder of JPEG makes the same picture of a file, but for rounding.

    In colour as JFIF has it, upright, whole by its end mark, no strip, and of usual size.
    """
    if not data.endswith(_END_OF_JPEG):
        return False
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=["JPEG"])
        size, mode, info = image.size, image.mode, image.info
        components = [layer[0] for layer in getattr(image, "layer", ())]
    except Exception:  # a damaged header: whoever reads it with more care says what is wrong
        return False
    return (
        size[0] * size[1] <= min(max_pixels, MOST_PLAIN_PIXELS)
        and min(size) >= MIN_SIDE
        and max(size) <= MAX_ASPECT_RATIO * min(size)
        and mode == "RGB"
        and components == [1, 2, 3]  # else they may be red, green and blue themselves
        and info.get("adobe_transform", 1) == 1
        and _turn(image) is None
    )


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except UnusableImage:
        raise
    except Exception as error:
        # Damaged bytes make decoders raise nearly anything: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error. The message may hold an address, which differs by run.
        detail = re.sub(r"<[^>]* at 0x[0-9a-fA-F]+>", "data", str(error))
        raise UnusableImage(BROKEN_IMAGE, f"{type(error).__name__}: {detail}") from error


@contextmanager
def _naming_lack_of_memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:  # any other error of it is the program's, not the image's
        raise UnusableImage(IMAGE_TOO_LARGE, "it does not fit into memory") from error


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """What brings a picture upright; None where it is."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing about the picture
        return None


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    method = _turn(image)
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


@dataclass(frozen=True)
class ReadImage:
    """What was found of an image elsewhere: `DecodedImage` without the image file at hand.

    Attributes:
        sha256: of the image file, hexadecimal.
        ids: names of its pairs by their captions, as far as they were asked for.
        record: to read it again where another caption needs a name.
        pixels: what is handed on of it, until it was.
    """

    sha256: str
    ids: Mapping[str, str]
    record: ImageRecord = field(repr=False)
    pixels: np.ndarray | None

    def pair_id(self, caption: str) -> str:
        """The name of a pair; see `base.pair_id`."""
        known = self.ids.get(caption)
        return known or pair_ids(hashlib.sha256(self.record.read()), [caption])[0]

    def without_pixels(self) -> ReadImage:
        """The same for whoever needs its names alone."""
        return replace(self, pixels=None)


def pair_ids(image: Any, captions: Sequence[str]) -> list[str]:
    """Names of the pairs of an image, of which `image` is hashlib's object."""
    found = []
    for caption in captions:
        both = image.copy()
        both.update(caption.encode())
        found.append(both.hexdigest()[:32])
    return found


def read_file_of(key: str, read: Callable[[], bytes]) -> bytes:
    """The bytes of an image file.

    Raises:
        UnusableImage: it cannot be had.
        StorageGoneError: nor can any other.
    """
    try:
        return read()
    except (UnusableImage, StorageGoneError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        told = error.args[0] if len(error.args) == 1 else key
        raise UnusableImage(MISSING_FILE, str(told)) from error
    except Exception as error:  # a source may read through any library
        raise UnusableImage(UNREADABLE_FILE, f"{type(error).__name__}: {error}") from error


class SmallCopies:
    """Small copies of images, up to a number, without loss, in whatever process they are made.

    Shown an image file and its image, it keeps a copy, as a watch of `decode_pixels`.
    """

    def __init__(self, kept: dict[str, bytes], most: int, side: int) -> None:
        """Nothing is kept yet.

        Args:
            kept: image files by the SHA-256 of the large ones.
            most: that are kept.
            side: pixels of their longer sides at most.
        """
        self._kept, self._most, self.side = kept, most, side

    def __call__(self, data: bytes, image: PIL.Image.Image) -> None:
        """Keep a copy of an image."""
        if self.wants_more():
            self.keep(hashlib.sha256(data).hexdigest(), small_copy(image, self.side))

    def wants_more(self) -> bool:
        """Whether fewer are kept than may be."""
        return len(self._kept) < self._most

    def keep(self, sha256: str, copy: bytes) -> None:
        """Keep a copy that was made of an image file of this hash."""
        self._kept[sha256] = copy


def small_copy(image: PIL.Image.Image, side: int) -> bytes:
    """An image file with an image in small."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


def decode_pixels(
    prepare: Callable[[PIL.Image.Image], np.ndarray],
    max_pixels: int,
    watch: Callable[[bytes, PIL.Image.Image], None] | None = None,
) -> Callable[[bytes], np.ndarray]:
    """What makes an encoder's input of an image file; it raises `UnusableImage`.

    `prepare` makes it of the image; one that is a `Resizing` decodes no more than it needs. `watch`
    is shown every file and its image, in whatever thread decodes it.
    """

    def decode(data: bytes) -> np.ndarray:
        if isinstance(prepare, Resizing):
            pixels, image = decode_resized(data, max_pixels, prepare)
            if watch is not None:
                watch(data, image)
            return pixels
        image = decode_image(data, max_pixels)
        if watch is not None:
            watch(data, image)
        with _naming_lack_of_memory():
            return prepare(image)

    return decode
