"""Image-text pairs: what a source gives, what is cleaned away, and how the rest is read.

A `PairSource` names candidate images with their captions, split by split, in the order in which
they are to be tried; `PairReader` reads them in worker threads, keeps what is usable and remembers
why the rest is not: broken images, empty captions, exact duplicates, images in two splits. The
sources themselves are in `sources`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import threading
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import PIL.Image

from settings import InputError, Settings, setting

logger = logging.getLogger(__name__)
# What is wrong with an image is listed with its pairs; Pillow's warnings would only repeat it.
warnings.filterwarnings("ignore", module=r"PIL\.")

SPLITS = ("train", "validation", "test")
SAMPLE_FLAGS = dict(
    zip(SPLITS, ("max_train_samples", "max_val_samples", "max_test_samples"), strict=True)
)

MISSING_FILE = "missing file"
UNREADABLE_FILE = "unreadable file"
EMPTY_FILE = "empty file"
FILE_TOO_LARGE = "file too large"
OUTSIDE_FOLDER = "path outside the folder"
BROKEN_IMAGE = "broken image"
IMAGE_TOO_LARGE = "image too large"
IMAGE_TOO_SMALL = "image too small"
EMPTY_CAPTION = "empty caption"
MISSING_CAPTION = "missing caption"
DAMAGED_CAPTION = "damaged caption"
CAPTION_TOO_LONG = "caption too long"
DUPLICATE_KEY = "duplicate key"
DUPLICATE_PAIR = "duplicate pair"
IMAGE_IN_ANOTHER_SPLIT = "image in another split"

MAX_FILE_BYTES = 2**28  # of an image; what claims to be larger is not read
MIN_SIDE = 2  # pixels; what is narrower is a tracking pixel or a rule, not a picture
MAX_CAPTION_CHARACTERS = 10_000
MAX_SHOWN_CHARACTERS = 500  # of a caption in the list of what was skipped
IMAGES_AT_ONCE = 4  # that a worker is handed; handing over a small one costs as much as reading it
HANDS_A_WORKER = 2  # one in its hands and one waiting; bounds memory

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which pairs to use, and how many."""

    dataset: str = setting(
        "auto",
        "where the pairs come from; auto: COCO where it can be had, else synthetic scenes",
        choices=("auto", "coco", "synthetic", "folder", "webdataset", "parquet", "hf"),
    )
    data_dir: str | None = setting(
        None,
        "local data: COCO's official layout, a folder of images and captions, of parquet files or "
        "of tar shards, or a brace pattern of shards",
        type=str,
    )
    embeddings_dir: str | None = setting(
        None,
        "embeddings that you already have, in clip-retrieval's layout (img_emb, text_emb, "
        "metadata): stage 1 then only clusters",
        type=str,
    )
    hf_dataset: str = setting(
        "jxie/coco_captions", "Hub data set, or local save_to_disk or parquet folder"
    )
    image_column: str = setting("image", "column of a table that holds the image")
    caption_column: str = setting("caption", "column of a table that holds the caption")
    id_column: str = setting(
        "cocoid", "column of a table that tells which rows show the same image, if it exists"
    )
    val_data: str | None = setting(
        None,
        "another data set that the validation pairs come from: a folder, tar shards, parquet "
        "files, COCO, a save_to_disk folder or a Hub id; what it is, is found out, or said in "
        "front: parquet:DIR",
        type=str,
        added_later=True,
    )
    test_data: str | None = setting(
        None,
        "another data set that the test pairs come from, likewise",
        type=str,
        added_later=True,
    )
    val_embeddings_dir: str | None = setting(
        None,
        "other embeddings that the validation pairs come from, beside --embeddings_dir",
        type=str,
        added_later=True,
    )
    test_embeddings_dir: str | None = setting(
        None,
        "other embeddings that the test pairs come from, beside --embeddings_dir",
        type=str,
        added_later=True,
    )
    max_train_samples: int = setting(5000, "most training pairs", at_least=2)
    max_val_samples: int = setting(1000, "most validation images, one caption each", at_least=2)
    max_test_samples: int = setting(1000, "most test images, all captions each", at_least=2)
    num_workers: int = setting(
        4, "threads that read images; 0 reads in the main one", at_least=0, affects_result=False
    )
    max_image_pixels: int = setting(89_478_485, "images with more pixels are skipped", at_least=1)

    def warn_of_unused(self, used: Sequence[str], source: str) -> None:
        """Say which flags about a source were given to one that does not use them."""
        unused = [
            f"--{name}"
            for name in ("hf_dataset", "image_column", "caption_column", "id_column")
            if name not in used and getattr(self, name) != getattr(DataConfig, name)
        ]
        if unused:
            logger.warning(
                "%s: not used by %s; leave %s out",
                *(", ".join(unused), source, "it" if len(unused) == 1 else "them"),
            )

    def limits(self) -> dict[str, int]:
        """The most samples of each split: pairs, images of one pair, images."""
        return {split: getattr(self, flag) for split, flag in SAMPLE_FLAGS.items()}


@dataclass(frozen=True)
class PartConfig(DataConfig):
    """What one of several data sets is opened with.

    Attributes:
        splits: those that it gives; the others come from elsewhere.
    """

    splits: tuple[str, ...] = SPLITS

    def limits(self) -> dict[str, int]:
        """The most samples of each split that it gives."""
        return {split: n for split, n in super().limits().items() if split in self.splits}


@dataclass(frozen=True)
class Caption:
    """The text side of a candidate pair.

    Attributes:
        position: index of the pair in the source, over all its splits; of held-out pairs from
            another data set from a large number on, see `combined.FIRST_POSITIONS`.
        text: the caption as written; None where there is none.
        fault: ground truth of synthetic pairs: wrong_caption, boilerplate, near_copy or "".
        row: of the table that it stands in, from 0; -1 where it stands in none.
    """

    position: int
    text: str | None
    fault: str = ""
    row: int = -1


@dataclass(frozen=True)
class ImageRecord:
    """An image that is not read yet, and its candidate captions.

    Attributes:
        key: stable name of the image in its source.
        read: returns the file's bytes; called in a worker thread, may raise OSError and others.
        captions: the candidate pairs.
        group: ground truth of synthetic images: rare or "".
        shard: the file that holds many images, as a path from the data folder; "" without one.
        member: the image's own file, in the folder or in its shard; "" in a table.
        uid: the name that DataComp gave the pair, 32 hex digits, or "".
        problem: why the image must not be read, where that was known when the source was opened.
    """

    key: str
    read: Callable[[], bytes]
    captions: tuple[Caption, ...]
    group: str = ""
    shard: str = ""
    member: str = ""
    uid: str = ""
    problem: UnusableImage | None = None


@dataclass(frozen=True)
class UsableImage:
    """A kept image after preprocessing; the i-th of a split has row i."""

    row: int
    pixels: np.ndarray


class UnusableImage(Exception):  # noqa: N818 - an outcome, not an error of the program
    """An image that is skipped: a short reason, and what exactly was wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class PairSource(ABC):
    """Where pairs come from.

    Attributes:
        name: the data set really used: folder, coco, hf or synthetic.
        description: one line for people: what, where, how many.
        fingerprint: hex digest that changes whenever the data does.
    """

    def __init__(self, name: str, description: str, fingerprint: str) -> None:
        self.name, self.description, self.fingerprint = name, description, fingerprint

    @abstractmethod
    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidate images of a split in the order in which they are tried."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The description, in a line for each data set that there is."""
        return (self.description,)

    def n_images(self, split: str) -> int | None:
        """Number of candidate images of a split; None where that is not known."""
        return None

    def n_captions(self, split: str) -> int | None:
        """Number of captions of a split, all of every image; None where that is not known."""
        return None

    def has_keys_below(self, prefix: str) -> bool:
        """Whether a key is known that begins like this."""
        return False

    def read_image(self, key: str) -> bytes:
        """The bytes of one image.

        Raises:
            KeyError: the source cannot go back to this image.
            OSError: the file cannot be read.
        """
        raise KeyError(key)

    def read_again(self, keys: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """What reads each of the images named, in the order given: that of the source is fastest.

        A stream gives each once, in its own order, leaves out what it does not hold, and must not
        have been read before.
        """
        for key in keys:
            yield key, partial(self.read_image, key)


# --- Cleaning -------------------------------------------------------------------------------------


def normalize_caption(text: str) -> str:
    """A caption as it is compared, never as it is used.

    Unicode NFKC, case folded, white space collapsed, punctuation and space dropped at the end.
    Applying it twice changes nothing.
    """
    previous, text = "", text
    while text != previous:  # NFKC and case folding can undo each other's work once
        previous, text = text, unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(text.split())
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


_NO_TEXT = re.compile("[\0\ufffd\ud800-\udfff]")  # NUL, what decoders put for damage, surrogates


def caption_fault(text: str | None) -> tuple[str, str] | None:
    """Why a caption cannot be used, a short reason and what exactly is wrong; None if it can."""
    if text is None:
        return MISSING_CAPTION, ""
    if not text.strip():
        return EMPTY_CAPTION, ""
    if len(text) > MAX_CAPTION_CHARACTERS:
        return CAPTION_TOO_LONG, f"{len(text):,} characters"
    if _NO_TEXT.search(text):
        return DAMAGED_CAPTION, "it holds bytes that are no text"
    return None


def pair_id(image: bytes, caption: str) -> str:
    """The 128-bit name of a pair, 32 hex digits: half the SHA-256 of image file and caption."""
    return hashlib.sha256(image + caption.encode()).hexdigest()[:32]


# Others are refused: some make Pillow call programs, or unpack an image larger than they claim.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
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
        UnusableImage: empty file, broken image, image too large or too small.
    """
    if not data:
        raise UnusableImage(EMPTY_FILE)
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


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    hash: Any  # hashlib's object, which has seen the image file
    pixels: np.ndarray | None

    @property
    def sha256(self) -> str:
        return str(self.hash.hexdigest())

    def pair_id(self, caption: str) -> str:
        """`pair_id` without the image file at hand."""
        both = self.hash.copy()
        both.update(caption.encode())
        return str(both.hexdigest()[:32])


def decode_pixels(
    preprocess: Callable[[PIL.Image.Image], np.ndarray], max_pixels: int
) -> Callable[[bytes], np.ndarray]:
    """What makes an encoder's input of an image file; it raises `UnusableImage`."""

    def decode(data: bytes) -> np.ndarray:
        image = decode_image(data, max_pixels)
        try:
            return preprocess(image)
        except MemoryError as error:  # any other error of it is the program's, not the image's
            raise UnusableImage(IMAGE_TOO_LARGE, "it does not fit into memory") from error

    return decode


class PairReader:
    """Reads a source split by split, keeps what is usable, remembers why the rest is not.

    The splits are to be read in the order test, validation, train: an image that is in two of
    them stays in the first. Every image is read once, and no more images are asked for than the
    split still needs, so that a stream loses none.
    """

    def __init__(
        self,
        source: PairSource,
        config: DataConfig,
        *,
        decode: Callable[[bytes], np.ndarray],
    ) -> None:
        """Nothing is read yet.

        Args:
            source: where the pairs come from.
            config: limits and workers.
            decode: an encoder's input from an image file, see `decode_pixels`; thread-safe.
        """
        self.source, self._config, self._decode = source, config, decode
        self._limits = config.limits()
        self._n_kept = dict.fromkeys(SPLITS, 0)  # test: images, else pairs
        self._owners: dict[str, tuple[str, int, int]] = {}  # sha256: split, row, first position
        self._positions: dict[tuple[str, str], int] = {}  # (sha256, normalised caption)
        self._pairs: list[tuple[Hashable, ...]] = []
        self._skipped: list[tuple[Hashable, ...]] = []
        self._ended: set[str] = set()  # splits of which every candidate was asked for

    def n_expected(self, split: str) -> int:
        """The most images that `images` can yield, for a progress bar."""
        known = self.source.n_images(split)
        return self._limits[split] if known is None else min(known, self._limits[split])

    def images(self, split: str) -> Iterator[UsableImage]:
        """Usable images of a split, read ahead by a bounded number, until the split is full.

        Raises:
            InputError: the split ends without a single usable pair.
        """
        n_rows = n_tried = 0
        known: dict[str, _Read | UnusableImage] = {}
        first_skipped = len(self._skipped)
        for record, outcome in self._outcomes(split, known):
            n_tried += len(record.captions)
            if record.problem is None and not _has_usable_caption(record):
                for caption in record.captions:
                    fault = caption_fault(caption.text)
                    self._skip(split, record, [caption], *(fault or (EMPTY_CAPTION, "")))
                continue
            if isinstance(outcome, UnusableImage):
                known[record.key] = outcome
                self._skip(split, record, record.captions, outcome.reason, outcome.detail)
                continue
            is_new = outcome.sha256 not in self._owners
            owner, row, first = self._owners.get(outcome.sha256, (split, n_rows, -1))
            if owner != split:
                self._skip(
                    split, record, record.captions, IMAGE_IN_ANOTHER_SPLIT, owner, outcome, first
                )
            else:
                self._keep(split, record, outcome, row)
            if outcome.sha256 not in self._owners:  # a spare caption may need the pixels yet
                continue
            known[record.key] = _Read(outcome.hash, pixels=None)
            if is_new and outcome.pixels is not None:
                n_rows += 1
                yield UsableImage(row, outcome.pixels)
        if not n_rows:
            reasons = Counter(str(row[3]) for row in self._skipped[first_skipped:])
            counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
            raise InputError(
                f"no usable pair for the {split} split: {n_tried:,} tried"
                + (f" ({counts})" if counts else "")
                + f"; check the data ({self.source.description})"
            )

    def pairs(self) -> pd.DataFrame:
        """The kept pairs, split by split, by position: what was read and in which image row."""
        columns = ["split", "position", "key", "image_row", "caption", "image_sha256", "fault"]
        columns += ["group", "id", "shard", "member", "row", "uid"]
        rows = sorted(self._pairs, key=lambda pair: (SPLITS.index(str(pair[0])), pair[1]))
        return pd.DataFrame(rows, columns=columns)

    def skipped(self) -> pd.DataFrame:
        """The candidate pairs that were tried and not kept, in the order in which they were.

        `id` is "" where the image could not be read, `duplicate_of` the position of the pair that
        stayed in a duplicate's place, else -1.
        """
        columns = ["split", "position", "key", "reason", "detail", "caption"]
        columns += ["id", "shard", "member", "row", "duplicate_of"]
        return pd.DataFrame(self._skipped, columns=columns)

    def left_out(self) -> str:
        """What of the source the limits left unread, in a phrase; "" where that is nothing."""
        read = Counter(str(row[0]) for row in chain(self._pairs, self._skipped))
        parts, total = [], 0
        for split, flag in SAMPLE_FLAGS.items():
            n_captions = self.source.n_captions(split)
            if n_captions is None:
                return "" if self._ended >= {*SPLITS} else "the rest of the source was not read"
            if rest := n_captions - read[split]:
                once = ", one caption an image" if split == "validation" else ""
                parts.append(f"{rest:,} of {split} (--{flag} {self._limits[split]}{once})")
                total += rest
        if not parts:
            return ""
        return f"{total:,} further captions of the source were not read: {', '.join(parts)}"

    def _outcomes(
        self, split: str, known: Mapping[str, _Read | UnusableImage]
    ) -> Iterator[tuple[ImageRecord, _Read | UnusableImage]]:
        """Records with what reading them gave, in the records' order.

        `known` holds what the consumer will not need to see read again.
        """
        records = self.source.records(split)
        n_workers = self._config.num_workers
        executor = ThreadPoolExecutor(n_workers) if n_workers else None
        at_once = IMAGES_AT_ONCE if n_workers else 1
        window = max(1, HANDS_A_WORKER * n_workers) * at_once
        pending: deque[tuple[ImageRecord, Callable[[], _Read | UnusableImage]]] = deque()
        submitted: set[str] = set()

        def recall(record: ImageRecord) -> _Read | UnusableImage:
            return known.get(record.key) or self._read(record)

        def ask(hand: Sequence[ImageRecord]) -> None:
            """Have a worker read what was not read before, and queue all."""
            new: list[ImageRecord] = []
            for record in hand:
                if executor is not None and record.key not in submitted:
                    submitted.add(record.key)
                    new.append(record)
            future = executor.submit(self._read_all, new) if executor is not None and new else None
            rows = {id(record): row for row, record in enumerate(new)}
            for record in hand:
                row = rows.get(id(record))
                if future is None or row is None:
                    pending.append((record, partial(recall, record)))
                else:
                    pending.append((record, partial(_result_at, future, row)))

        try:
            while self._wanted(split) > 0:
                while len(pending) + at_once <= window:
                    hand = self._next_hand(split, records, pending, at_once)
                    if not hand:
                        break
                    ask(hand)
                if not pending:
                    return
                record, result = pending.popleft()
                yield record, result()
        finally:
            if executor is not None:
                executor.shutdown(cancel_futures=True)

    def _next_hand(
        self,
        split: str,
        records: Iterator[ImageRecord],
        pending: Iterable[tuple[ImageRecord, object]],
        most: int,
    ) -> list[ImageRecord]:
        """The next records, no more than the split still needs; none at its end."""
        hand: list[ImageRecord] = []
        room = self._wanted(split) - sum(_demanded(split, record) for record, _ in pending)
        while len(hand) < most and room > 0:
            record = next(records, None)
            if record is None:
                self._ended.add(split)
                break
            hand.append(record)
            room -= _demanded(split, record)
        return hand

    def _wanted(self, split: str) -> int:
        return self._limits[split] - self._n_kept[split]

    def _read_all(self, records: Sequence[ImageRecord]) -> list[_Read | UnusableImage]:
        return [self._read(record) for record in records]

    def _read(self, record: ImageRecord) -> _Read | UnusableImage:
        if record.problem is not None:
            return record.problem
        if not _has_usable_caption(record):  # then its captions are judged, not the image
            return UnusableImage(MISSING_CAPTION)
        try:
            data = record.read()
        except UnusableImage as unusable:
            return unusable
        except (FileNotFoundError, NotADirectoryError):
            return UnusableImage(MISSING_FILE, record.key)
        except Exception as error:  # a source may read through any library
            return UnusableImage(UNREADABLE_FILE, f"{type(error).__name__}: {error}")
        try:
            pixels = self._decode(data)
        except UnusableImage as unusable:
            return unusable
        return _Read(hashlib.sha256(data), pixels)

    def _keep(self, split: str, record: ImageRecord, image: _Read, row: int) -> None:
        """Keep the usable captions of an image as far as the split needs them."""
        sha256 = image.sha256
        for caption in record.captions:
            if split != "test" and self._wanted(split) <= 0:
                break
            fault = caption_fault(caption.text)
            if fault is not None:
                self._skip(split, record, [caption], *fault)
                continue
            text = str(caption.text).strip()
            pair = (sha256, normalize_caption(text))
            if pair in self._positions:
                first = self._positions[pair]
                detail = f"same as position {first}"
                self._skip(split, record, [caption], DUPLICATE_PAIR, detail, image, first)
                continue
            self._positions[pair] = caption.position
            self._pairs.append(
                (
                    *(split, caption.position, record.key, row, text, sha256, caption.fault),
                    *(record.group, image.pair_id(text), record.shard, record.member),
                    *(caption.row, record.uid),
                )
            )
            is_new = sha256 not in self._owners
            if is_new:
                self._owners[sha256] = (split, row, caption.position)
            self._n_kept[split] += is_new if split == "test" else 1

    def _skip(
        self,
        split: str,
        record: ImageRecord,
        captions: Iterable[Caption],
        reason: str,
        detail: str = "",
        image: _Read | None = None,
        duplicate_of: int = -1,
    ) -> None:
        for caption in captions:
            text = (caption.text or "").strip()
            usable = image is not None and caption_fault(text) is None
            self._skipped.append(
                (
                    *(split, caption.position, record.key, reason, detail, _shown(text)),
                    image.pair_id(text) if image is not None and usable else "",
                    *(record.shard, record.member, caption.row, duplicate_of),
                )
            )


def _result_at(future: Future[list[T]], row: int) -> T:
    return future.result()[row]


def _demanded(split: str, record: ImageRecord) -> int:
    """How much of a split's limit a record may take: images of the test split, else pairs."""
    return 1 if split == "test" else len(record.captions)


def _has_usable_caption(record: ImageRecord) -> bool:
    return any(caption_fault(caption.text) is None for caption in record.captions)


def _shown(text: str) -> str:
    """A caption that any file can hold, cut off where it is very long."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


# --- The Hub --------------------------------------------------------------------------------------


def hub_answers(repo_id: str, repo_type: str, timeout_seconds: float = 5.0) -> bool:
    """Whether the Hub answers and has this repository.

    Args:
        repo_id: owner/name.
        repo_type: model or dataset.
        timeout_seconds: longest wait; a name server that hangs is waited for no longer.
    """
    switches = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    if any(os.environ.get(s, "").upper() in ("1", "ON", "YES", "TRUE") for s in switches):
        return False
    from huggingface_hub import HfApi

    api = HfApi()
    look_up = api.dataset_info if repo_type == "dataset" else api.model_info
    answered = threading.Event()

    def ask() -> None:
        try:
            look_up(repo_id, timeout=timeout_seconds)
            answered.set()
        except Exception as error:  # no network, no such repository, no permission
            logger.debug("the Hub has no %s: %s", repo_id, error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return answered.is_set()
