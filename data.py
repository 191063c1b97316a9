"""Stage 0: where pairs come from, and how they are read.

`open_source` makes the `PairSource` that the settings ask for; what each kind of data looks like is
known in `sources`. `PairReader` reads it in worker threads, keeps what is usable and remembers why
the rest is not: broken images, empty captions, exact duplicates, images in two splits.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import pandas as pd

from artifacts.settings import InputError
from sources.accounting import (
    PAIR_COLUMNS,
    SKIPPED_COLUMNS,
    Account,
    left_out_sentence,
    no_usable_pair,
)
from sources.base import (
    DUPLICATE_PAIR,
    EMPTY_CAPTION,
    IMAGE_IN_ANOTHER_SPLIT,
    MISSING_CAPTION,
    NO_LIMIT,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.captions import caption_fault, normalize_caption, shown_caption
from sources.coco import open_coco_files
from sources.combined import CombinedSource, HeldOut, held_out_sets, open_parts, restrict_stream
from sources.folders import open_folder
from sources.hub import open_hf
from sources.images import DecodedImage, FoundImage, ReadImage, read_file_of
from sources.parquet import open_parquet
from sources.places import BrokenReadError
from sources.processes import AskedImage, ImageReaders
from sources.scenes import open_synthetic
from sources.shards import open_shards

logger = logging.getLogger(__name__)
IMAGES_AT_ONCE = 4  # that a thread is handed; handing over a small one costs as much as reading it
MANY_SHARED = 0.1  # of the captions, whose image is in another split: splits are hardly meant so
HANDS_A_WORKER = 2  # one in its hands and one waiting; bounds memory
T = TypeVar("T")
COLUMN_FLAGS = ("image_column", "caption_column", "id_column")
SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: no COCO could be had, so this run uses drawn scenes and says nothing about "
    "photographs. Give --data_dir a folder with annotations/ and train2017/, or use "
    "--dataset folder with images and captions of your own."
)


# --- Opening a data set ---------------------------------------------------------------------------


@contextmanager
def _collecting_later() -> Iterator[None]:
    """No search for circles of objects: it would look at all that is known of all pairs, often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collecting_later()
def open_source(config: DataConfig, *, rng: np.random.Generator) -> PairSource:
    """The source that the settings ask for.

    Args:
        config: `dataset` chooses; an explicit choice never falls back.
        rng: decides carved splits, the order of candidates and the synthetic scenes.

    Raises:
        InputError: the data cannot be had or understood.
    """
    held_out = held_out_sets(config)
    _warn_of_unused(config, held_out.values())
    if not held_out:
        return _open_one(config, rng)
    if config.dataset == "synthetic":
        flag = next(iter(held_out.values())).flag
        raise InputError(
            f"{flag}: drawn scenes bring their own held-out scenes; leave it out, or give "
            "--data_dir the pairs that are to be curated"
        )
    if config.dataset == "auto":  # which then falls back to nothing
        config = replace(config, dataset="coco")
    pool, others = open_parts(config, held_out, rng, _open_one)
    return CombinedSource(pool, held_out, others)


def _warn_of_unused(config: DataConfig, held_out: Iterable[HeldOut]) -> None:
    """Say which flags about a source were given although no data set has a use for them."""
    is_coco = config.dataset in ("auto", "coco")
    used: set[str] = set()
    if config.dataset == "hf" or (is_coco and config.data_dir is None):
        used = {*COLUMN_FLAGS, "hf_dataset"}
    else:
        used = _columns_used(config.dataset)
    names = [f"--dataset {config.dataset}"]
    if is_coco and config.data_dir is not None:
        names = [f"{names[0]} with --data_dir"]
    for part in held_out:
        used |= _columns_used(part.layout)
        names.append(part.flag)
    config.warn_of_unused(sorted(used), " and ".join(names))


def _columns_used(layout: str) -> set[str]:
    """The flags that name columns, as far as a layout has a use for them."""
    if layout in ("hf", "parquet"):
        return {*COLUMN_FLAGS}
    return {"image_column", "caption_column"} if layout in ("folder", "webdataset") else set()


def _open_one(config: DataConfig, rng: np.random.Generator) -> PairSource:
    """One data set, whatever it is.

    Raises:
        InputError: it cannot be had or understood, or what tells its pairs breaks off.
    """
    try:
        return _open_layout(config, rng)
    except BrokenReadError as error:
        raise InputError(f"--data_dir {config.data_dir}: {error}; run again") from error


def _open_layout(config: DataConfig, rng: np.random.Generator) -> PairSource:
    """What `dataset` names."""
    if config.dataset == "folder":
        return open_folder(config, rng)
    if config.dataset == "webdataset":
        return open_shards(config, rng)
    if config.dataset == "parquet":
        return open_parquet(config, rng)
    if config.dataset == "hf":
        return restrict_stream(open_hf("hf", config, rng), config)
    if config.dataset == "synthetic":
        return open_synthetic(config, rng)
    if config.data_dir is not None:
        return open_coco_files(config.data_dir, config, rng)
    try:
        return restrict_stream(open_hf("coco", config, rng), config)
    except InputError as error:
        if config.dataset == "coco":
            raise
        logger.warning("%s (%s)", SYNTHETIC_WARNING, error)
        return open_synthetic(config, rng)


# --- Reading it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class UsableImage:
    """A kept image after preprocessing; the i-th of a split has row i."""

    row: int
    pixels: np.ndarray


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
        processes: ImageReaders | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: where the pairs come from.
            config: limits and workers.
            decode: an encoder's input from an image file, see `decode_pixels`; thread-safe.
            processes: that make the same of it where images are many; None: threads do.
        """
        self.source, self._config, self._decode = source, config, decode
        self._processes = processes
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

    def n_all_expected(self) -> int | None:
        """The same of all splits; None where no limit and no count bounds it."""
        expected = [self.n_expected(split) for split in SPLITS]
        return None if NO_LIMIT in expected else sum(expected)

    def is_in_processes(self) -> bool:
        """Whether images are enough for processes to read them, as far as their number is known."""
        if self._processes is None or not self._config.n_workers():
            return False
        expected = self.n_all_expected()
        return expected is None or expected >= self._processes.least_images

    def images(self, split: str) -> Iterator[UsableImage]:
        """Usable images of a split, read ahead by a bounded number, until the split is full.

        Raises:
            InputError: the split ends without a single usable pair.
        """
        n_rows = n_tried = 0
        known: dict[str, FoundImage | UnusableImage] = {}
        first_skipped = len(self._skipped)
        for record, outcome in self._outcomes(split, known):
            n_tried += len(record.captions)
            if record.problem is None and not has_usable_caption(record):
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
            known[record.key] = outcome.without_pixels()
            if is_new and outcome.pixels is not None:
                n_rows += 1
                yield UsableImage(row, outcome.pixels)
        if not n_rows:
            skipped = self._skipped[first_skipped:]
            reasons = Counter(str(row[3]) for row in skipped)
            raise InputError(no_usable_pair(split, n_tried, reasons, skipped, self.source))

    def pairs(self) -> pd.DataFrame:
        """The kept pairs, split by split, by position: what was read and in which image row."""
        rows = sorted(self._pairs, key=lambda pair: (SPLITS.index(str(pair[0])), pair[1]))
        return pd.DataFrame(rows, columns=PAIR_COLUMNS)

    def skipped(self) -> pd.DataFrame:
        """The candidate pairs that were tried and not kept, in the order in which they were.

        `id` is "" where the image could not be read, `duplicate_of` the position of the pair that
        stayed in a duplicate's place, else -1.
        """
        return pd.DataFrame(self._skipped, columns=SKIPPED_COLUMNS)

    def account(self) -> Account:
        """What became of every caption of the source, so far."""
        total = self.source.n_all_captions()
        n_used, n_skipped = len(self._pairs), len(self._skipped)
        rest = None if total is None else total - n_used - n_skipped
        if total is None and self._ended >= {*SPLITS}:
            rest = 0
        return Account(n_used, n_skipped, rest, self.source.unread)

    def id_hint(self) -> str:
        """A line where many rows of tables were skipped that may show the same images; else ""."""
        n_shared = sum(row[3] == IMAGE_IN_ANOTHER_SPLIT for row in self._skipped)
        has_rows = self.source.name in ("parquet", "hf")
        if not has_rows or n_shared < MANY_SHARED * (len(self._pairs) + len(self._skipped)):
            return ""
        return (
            f"{n_shared:,} captions were skipped because their image is in another split; where "
            "several rows show one image, name the column that tells which with --id_column"
        )

    def left_out(self) -> str:
        """What of the source the limits left unread, in a phrase; "" where that is nothing."""
        read = Counter(str(row[0]) for row in chain(self._pairs, self._skipped))
        return left_out_sentence(self.source, self._config, read, is_read=self._ended >= {*SPLITS})

    def _outcomes(
        self, split: str, known: Mapping[str, FoundImage | UnusableImage]
    ) -> Iterator[tuple[ImageRecord, FoundImage | UnusableImage]]:
        """Records with what reading them gave, in the records' order.

        `known` holds what the consumer will not need to see read again.
        """
        records = self.source.records(split)
        n_workers = self._config.n_workers()
        executor = ThreadPoolExecutor(n_workers) if n_workers else None
        processes = self._processes if self.is_in_processes() else None
        if processes is not None:
            processes.start(n_workers)  # while the first candidates are being found
        usual = IMAGES_AT_ONCE if processes is None else processes.images_a_hand
        at_once = usual if n_workers else 1
        read_all = self._read_all if processes is None else partial(self._send_all, processes)
        window = max(1, HANDS_A_WORKER * n_workers) * at_once
        pending: deque[tuple[ImageRecord, Callable[[], FoundImage | UnusableImage]]] = deque()
        submitted: set[str] = set()

        def recall(record: ImageRecord) -> FoundImage | UnusableImage:
            return known.get(record.key) or self._read(record)

        def ask(hand: Sequence[ImageRecord]) -> None:
            """Have a worker read what was not read before, and queue all."""
            new: list[ImageRecord] = []
            for record in hand:
                if executor is not None and record.key not in submitted:
                    submitted.add(record.key)
                    new.append(record)
            future = executor.submit(read_all, new) if executor is not None and new else None
            rows = {id(record): row for row, record in enumerate(new)}
            for record in hand:
                row = rows.get(id(record))
                if future is None or row is None:
                    pending.append((record, partial(recall, record)))
                else:
                    pending.append((record, partial(_result_at, future, row)))

        waits = True
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
        except KeyboardInterrupt:  # the program ends, and what is being read with it
            waits = False
            raise
        finally:
            if executor is not None:
                executor.shutdown(waits, cancel_futures=True)

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

    def _read_all(self, records: Sequence[ImageRecord]) -> list[FoundImage | UnusableImage]:
        return [self._read(record) for record in records]

    def _send_all(
        self, processes: ImageReaders, records: Sequence[ImageRecord]
    ) -> list[FoundImage | UnusableImage]:
        """What `_read_all` gives, read by a process."""
        found: list[FoundImage | UnusableImage | None] = [_known_problem(r) for r in records]
        rows = [row for row, known in enumerate(found) if known is None]
        asked = [
            AskedImage(records[row].key, records[row].read, usable_texts(records[row]))
            for row in rows
        ]
        for row, sent in zip(rows, processes.read(asked), strict=True):
            if not isinstance(sent, UnusableImage):
                found[row] = ReadImage(sent.sha256, sent.ids, records[row], sent.pixels)
            else:
                found[row] = sent
        return [outcome for outcome in found if outcome is not None]

    def _read(self, record: ImageRecord) -> FoundImage | UnusableImage:
        return _known_problem(record) or read_record(record.key, record.read, self._decode)

    def _keep(self, split: str, record: ImageRecord, image: FoundImage, row: int) -> None:
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
        image: FoundImage | None = None,
        duplicate_of: int = -1,
    ) -> None:
        for caption in captions:
            text = (caption.text or "").strip()
            usable = image is not None and caption_fault(text) is None
            self._skipped.append(
                (
                    *(split, caption.position, record.key, reason, detail, shown_caption(text)),
                    image.pair_id(text) if image is not None and usable else "",
                    *(record.shard, record.member, caption.row, duplicate_of),
                )
            )


def _result_at(future: Future[list[T]], row: int) -> T:
    return future.result()[row]


def _demanded(split: str, record: ImageRecord) -> int:
    """How much of a split's limit a record may take: images of the test split, else pairs."""
    return 1 if split == "test" else len(record.captions)


def read_record(
    key: str, read: Callable[[], bytes], decode: Callable[[bytes], np.ndarray]
) -> DecodedImage | UnusableImage:
    """An image read, hashed and decoded, or why it cannot be used.

    Args:
        key: of the image.
        read: gives the file's bytes.
        decode: makes an encoder's input of them.
    """
    try:
        data = read_file_of(key, read)
        return DecodedImage(hashlib.sha256(data), decode(data))
    except UnusableImage as unusable:
        return unusable


def _known_problem(record: ImageRecord) -> UnusableImage | None:
    """Why an image need not be read."""
    if record.problem is not None:
        return record.problem
    if not has_usable_caption(record):  # then its captions are judged, not the image
        return UnusableImage(MISSING_CAPTION)
    return None


def usable_texts(record: ImageRecord) -> tuple[str, ...]:
    """The captions of a record that make pairs, as they are named."""
    texts = (c.text for c in record.captions if caption_fault(c.text) is None)
    return tuple(dict.fromkeys(str(text).strip() for text in texts))


def has_usable_caption(record: ImageRecord) -> bool:
    """Whether any caption of a record makes a pair."""
    return any(caption_fault(caption.text) is None for caption in record.captions)
