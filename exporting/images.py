"""Images read again from the data set, in its order and a bounded number at a time."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import pandas as pd
import PIL.Image

from artifacts.settings import InputError
from sources.base import MISSING_FILE, UNREADABLE_FILE, PairSource, UnusableImage
from sources.images import decode_image
from sources.places import StorageGoneError

logger = logging.getLogger(__name__)
T = TypeVar("T")
IMAGE_GONE = "no longer in the data set"
IMAGE_CHANGED = "image changed"
NO_IMAGE = "no image in the data set"

# What open_clip reads, by its first bytes; an image of another kind it drops without a word.
_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF....WEBP"}


@dataclass(frozen=True)
class ImageFile:
    """An image file as it is written.

    Attributes:
        data: the file's bytes.
        extension: of what it is, without the dot; "" where that is not known.
        source_sha256: of the bytes that the data set gave.
        converted_from: what it was before it became PNG, or "".
    """

    data: bytes
    extension: str
    source_sha256: str
    converted_from: str = ""


Prepare = Callable[[bytes, str], ImageFile]  # of a file's bytes and their SHA-256


def image_extension(data: bytes) -> str:
    """What an image file is by its first bytes: jpg, png, webp, gif, ...; "" if unknown."""
    start = data[:12]
    if start.startswith(b"RIFF"):
        start = start[:4] + b"...." + start[8:]  # the size lies between
    for extension, magic in _MAGIC.items():
        if start.startswith(magic):
            return extension
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return str(image.format or "").lower()
    except Exception:  # damaged bytes make Pillow raise nearly anything
        return ""


def as_it_is(data: bytes, sha256: str) -> ImageFile:
    """The file itself, of whatever kind."""
    return ImageFile(data, image_extension(data), sha256)


def for_open_clip(data: bytes, sha256: str) -> ImageFile:
    """The file itself, or the first frame as PNG where open_clip would not read it.

    Raises:
        UnusableImage: it cannot be converted.
    """
    extension = image_extension(data)
    if extension in _MAGIC:
        return ImageFile(data, extension, sha256)
    buffer = io.BytesIO()
    # No limit of its own: the very same bytes were decoded when the pairs were read.
    decode_image(data, sys.maxsize).save(buffer, format="PNG")
    return ImageFile(buffer.getvalue(), "png", sha256, extension or "unknown")


def _read(read: Callable[[], bytes], expected: set[str], prepare: Prepare) -> ImageFile | str:
    """An image, or why it cannot be exported."""
    try:
        data = read()
        sha256 = hashlib.sha256(data).hexdigest()
        return prepare(data, sha256) if {sha256, ""} & expected else IMAGE_CHANGED
    except UnusableImage as unusable:
        return unusable.reason
    except (FileNotFoundError, NotADirectoryError):
        return MISSING_FILE
    except KeyError:
        return NO_IMAGE
    except StorageGoneError:
        raise
    except Exception as error:  # a source may read through any library
        logger.debug("an image cannot be read again: %r", error)
        return UNREADABLE_FILE


def _next(readers: Iterator[T]) -> T | None:
    try:
        return next(readers, None)
    except OSError as error:  # of the data set as a whole, which is no error of writing
        raise InputError(
            f"--export: the data set cannot be read again: {error}; mend that and run "
            "again with --load_saved"
        ) from error


def read_pairs(
    todo: pd.DataFrame, source: PairSource, prepare: Prepare, n_workers: int
) -> Generator[tuple[list[Any], ImageFile | str], None, None]:
    """The pairs of every image, with it or with why it cannot be had, in the order of `todo`.

    `source` may leave images out but gives the others in the order asked for. Images are read
    ahead by a bounded number.

    Args:
        todo: a row a pair, those of one image together, with key and image_sha256 ("": not to be
            compared).
        source: not read yet.
        prepare: makes of a file what is written; called in a worker thread.
        n_workers: threads that read images; 0 reads in the main one.

    Raises:
        InputError: the data set as a whole cannot be read.
    """
    groups = groupby(todo.itertuples(index=False), key=attrgetter("key"))
    readers = source.read_again(todo["key"].drop_duplicates().tolist())
    executor = ThreadPoolExecutor(n_workers) if n_workers else None
    pending: deque[tuple[list[Any], Callable[[], ImageFile | str]]] = deque()  # pairs, image
    window = max(1, 4 * n_workers)
    try:
        while reader := _next(readers):
            for key, members in groups:
                pairs: list[Any] = list(members)
                if key == reader[0]:
                    work = partial(_read, reader[1], {p.image_sha256 for p in pairs}, prepare)
                    result = work if executor is None else executor.submit(work).result
                    pending.append((pairs, result))
                    break
                pending.append((pairs, lambda: IMAGE_GONE))
            del reader  # it may hold the image's bytes
            yield from _settle(pending, window - 1)
        yield from _settle(pending, 0)
        for _, members in groups:
            yield list(members), IMAGE_GONE
    finally:
        if executor is not None:
            executor.shutdown(cancel_futures=True)


def _settle(
    pending: deque[tuple[list[Any], Callable[[], ImageFile | str]]], n_left: int
) -> Iterator[tuple[list[Any], ImageFile | str]]:
    while len(pending) > n_left:
        pairs, get = pending.popleft()
        yield pairs, get()
