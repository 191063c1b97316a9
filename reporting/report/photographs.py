"""Small copies of the photographs of a run, so that a page can show them."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from jaxtyping import Int64, Shaped, UInt8
from tqdm import tqdm

from sources.base import UnusableImage
from sources.images import SmallCopies, decode_image

logger = logging.getLogger(__name__)
SIDE = 112  # pixels of the longer side
FORMAT = "AVIF"  # at this size half as large as JPEG of the same look
MIME_TYPE = "image/avif"
QUALITIES = (60, 50, 40, 30, 25)
EFFORT = 9  # of the encoder, 0 to 10: a third of the time of 8, a hundredth more bytes
N_TRIED = 128  # photographs whose size says which quality fits
N_EMBEDDED, EMBEDDED_BYTES = 5_000, 5_100_000  # within the page, where text makes a third more
AT_ONCE = 256


@dataclass(frozen=True)
class Photographs:
    """m small photographs, one file after the other in `files`."""

    image_sha256: Shaped[np.ndarray, " m"]  # of the image files, hexadecimal bytes; each once
    ends: Int64[np.ndarray, " m"]  # of each in `files`
    files: UInt8[np.ndarray, " bytes"]
    n_missing: int  # photographs that could not be read again
    quality: int

    def __len__(self) -> int:
        return len(self.ends)

    def file(self, row: int) -> bytes:
        """One of the image files."""
        start = int(self.ends[row - 1]) if row else 0
        return self.files[start : int(self.ends[row])].tobytes()

    @property
    def sizes(self) -> Int64[np.ndarray, " m"]:
        """Bytes of each."""
        return np.diff(self.ends, prepend=0)


Reader = tuple[str, Callable[[], bytes]]  # a key, and what reads its image


def keep_small(kept: dict[str, bytes], most: int) -> SmallCopies:
    """What keeps a small copy of every image that it is shown, up to a number, without loss.

    A stream so need not be read a second time; from the copies come the very photographs that
    come from the images.

    Args:
        kept: image files by the SHA-256 of the large ones.
        most: that are kept.
    """
    return SmallCopies(kept, most, SIDE)


def read_copies(wanted: pd.DataFrame, kept: Mapping[str, bytes]) -> Iterator[Reader]:
    """What `PairSource.read_again` would give, of small copies."""
    for key, sha256 in zip(wanted["key"], wanted["image_sha256"], strict=True):
        yield key, partial(kept.__getitem__, sha256)


def none_made(n_missing: int = 0) -> Photographs:
    """No photographs."""
    nothing = np.zeros(0, dtype=np.int64)
    return Photographs(
        np.zeros(0, dtype="S64"), nothing, nothing.astype(np.uint8), n_missing, QUALITIES[0]
    )


def make_photographs(
    wanted: pd.DataFrame, readers: Iterator[Reader], *, max_image_pixels: int, n_workers: int
) -> Photographs:
    """Small copies of images, in the order in which they are read.

    Of the qualities the best one is taken with which all of them, or as many as go into the page,
    are small enough for it. An image that cannot be read again is counted.

    Args:
        wanted: a row an image, with key and image_sha256.
        readers: keys and what reads their images, as `PairSource.read_again` gives them.
        max_image_pixels: of an image that is decoded.
        n_workers: threads; 0 reads in the main one.
    """
    sha256 = dict(zip(wanted["key"], wanted["image_sha256"], strict=True))
    readers = _until_it_fails(readers)
    make: Any = map
    executor = ThreadPoolExecutor(n_workers) if n_workers else None
    if executor is not None:
        make = executor.map
    with tqdm(
        total=len(sha256), desc="photographs", unit="image", disable=None, leave=False
    ) as bar:
        small = partial(_small, max_pixels=max_image_pixels)
        first = [p for p in make(small, islice(readers, N_TRIED)) if p is not None]
        bar.update(len(first))
        quality = _best_quality([image for _, image in first], len(sha256))
        files = {key: encode(image, quality) for key, image in first}
        while chunk := list(islice(readers, AT_ONCE)):
            files |= {
                key: data
                for key, data in make(partial(_file, small=small, quality=quality), chunk)
                if data
            }
            bar.update(len(chunk))
    if executor is not None:
        executor.shutdown()
    if not files:
        return none_made(len(sha256))
    return Photographs(
        image_sha256=np.array([sha256[key] for key in files], dtype="S64"),
        ends=np.cumsum([len(data) for data in files.values()]).astype(np.int64),
        files=np.frombuffer(b"".join(files.values()), dtype=np.uint8),
        n_missing=len(sha256) - len(files),
        quality=quality,
    )


def encode(image: PIL.Image.Image, quality: int) -> bytes:
    """An image file for the page."""
    buffer = io.BytesIO()
    image.save(buffer, FORMAT, quality=quality, speed=EFFORT)
    return buffer.getvalue()


def _until_it_fails(readers: Iterator[Reader]) -> Iterator[Reader]:
    """The readers of a source, up to where it cannot be read as a whole."""
    try:
        yield from readers
    except Exception as error:  # a stream may read through any library
        logger.warning("report: photographs are missing, the data cannot be read again: %s", error)


def _small(reader: Reader, max_pixels: int) -> tuple[str, PIL.Image.Image] | None:
    """A key and its image made small; None where it cannot be read again."""
    key, read = reader
    try:
        image = decode_image(read(), max_pixels)
    except KeyError:  # the source has no images
        return None
    except (UnusableImage, OSError) as error:
        logger.debug("%s: %s", key, error)
        return None
    except Exception as error:  # a source may read through any library
        logger.debug("%s cannot be read again: %r", key, error)
        return None
    image.thumbnail((SIDE, SIDE))
    return key, image


def _file(
    reader: Reader, small: Callable[[Reader], tuple[str, PIL.Image.Image] | None], quality: int
) -> tuple[str, bytes]:
    made = small(reader)
    return (reader[0], b"") if made is None else (made[0], encode(made[1], quality))


def _best_quality(images: Sequence[PIL.Image.Image], n: int) -> int:
    """The best quality with which n images such as these, or a page of them, are small enough."""
    if not images:
        return QUALITIES[0]
    per_image = EMBEDDED_BYTES / min(n, N_EMBEDDED)
    for quality in QUALITIES:
        if np.mean([len(encode(image, quality)) for image in images]) <= per_image:
            return quality
    return QUALITIES[-1]


def wanted_photographs(
    pairs: pd.DataFrame, first: Collection[str], most: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The images to make small, one row each, in the order of the data.

    Where there are more than are wanted: those that come first, then others at random, of training
    pairs before held-out ones.

    Args:
        pairs: that were read, of all splits.
        first: their image_sha256.
        most: images.
        rng: the draw.
    """
    images = pairs.drop_duplicates("image_sha256")
    turn = np.where(images["split"] == "train", 1, 2)
    turn[images["image_sha256"].isin(first)] = 0
    order = np.lexsort((rng.permutation(len(images)), turn))
    return images.iloc[np.sort(order[:most])][["key", "image_sha256"]]
