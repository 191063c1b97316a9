"""Image files by their names and their first bytes, without decoding them."""

from __future__ import annotations

import base64
import binascii
import re

# What files of images are called; whatever the name, the decoder looks at the bytes alone.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "jpe", "jp2"),
    *("j2k", "jpx", "ppm", "pgm", "pbm", "pnm", "heic", "heif", "hif", "img", "image"),
)
IMAGE_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
HEAD_BYTES = 64  # of a file that tell whether it is an image
_HEADS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|II\*\0|MM\0\*|II\+\0"
    rb"|MM\0\+|\0\0\0\x0cjP  |\xffO\xffQ|P[1-6][ \t\r\n]"
    rb"|.{4}ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1)",
    re.DOTALL,
)
_HEIF = re.compile(rb".{4}ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
# How JPEG, PNG, GIF and WebP begin in base64, and addresses that hold their data.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "data:image/")
_MIN_BASE64 = 64  # characters; no image is shorter
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins like this is an image that decoders know."""
    return _HEADS.match(head) is not None


def is_heif(head: bytes) -> bool:
    """Whether a file that begins like this is a HEIC or HEIF image."""
    return _HEIF.match(head) is not None


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins like this only says where Git LFS keeps the real one."""
    return head.startswith(_LFS_POINTER)


def looks_like_base64(text: str) -> bool:
    """Whether a text is an image written out, not the path of one."""
    return len(text) >= _MIN_BASE64 and text.startswith(_BASE64)


def from_base64(text: bytes) -> bytes | None:
    """The image that a text in base64 is; None for any other text."""
    if not looks_like_base64(text[:_MIN_BASE64].decode("utf-8", "replace")):
        return None
    try:
        return base64.b64decode(re.sub(rb"^data:[^,]*,", b"", text), validate=False)
    except (binascii.Error, ValueError):
        return None
