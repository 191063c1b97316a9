"""Images read, hashed, decoded and encoded shard by shard, by any worker, and taken in order.

A shard is a stretch of the candidates of a split, in the order in which they are tried. Which pairs
are kept is decided as `PairReader` decides, of what the shards have found; features stay in their
files until they are wanted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from data import PairReader, has_usable_caption, read_record
from encoders.base import Encoded, join
from engine.base import Setup
from engine.room import Made, StageRoom
from engine.shards import ShardFiles, Summary
from intake.setup import Reading
from sources.base import NO_LIMIT, DataConfig, ImageRecord, PairSource, UnusableImage
from sources.captions import caption_fault
from sources.images import FoundImage

IMAGES_A_SHARD = 512
READ_AHEAD = 2  # images for each thread that reads; bounds memory
OUTCOMES = pa.schema(
    [
        *(("sha256", pa.string()), ("reason", pa.string()), ("detail", pa.string())),
        *(("ids", pa.list_(pa.string())), ("row", pa.int64())),
    ]
)


# --- What a worker does ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ImagesJob:
    """A shard of images.

    Attributes:
        keys: of the images in their source.
        captions: those of each that are candidates.
        batch_size: images that are encoded at once.
        n_threads: that read and decode; 0 reads in the worker's own.
    """

    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    batch_size: int
    n_threads: int


@dataclass(frozen=True)
class ReadImage:
    """What was found of an image: `DecodedImage` without the image file at hand.

    Attributes:
        sha256: of the image file, hexadecimal.
        ids: names of its pairs by their captions, as far as they were asked for.
        record: to read it again where another caption needs a name.
        pixels: shard and row of its features, until they were handed on.
    """

    sha256: str
    ids: Mapping[str, str]
    record: ImageRecord = field(repr=False)
    pixels: np.ndarray | None

    def pair_id(self, caption: str) -> str:
        """The name of a pair; see `base.pair_id`."""
        known = self.ids.get(caption)
        return known or _pair_ids(hashlib.sha256(self.record.read()), [caption])[0]

    def without_pixels(self) -> ReadImage:
        """The same for whoever needs its names alone."""
        return replace(self, pixels=None)


def _pair_ids(image: Any, captions: Sequence[str]) -> list[str]:
    """Names of the pairs of an image, of which `image` is hashlib's object."""
    found = []
    for caption in captions:
        both = image.copy()
        both.update(caption.encode())
        found.append(both.hexdigest()[:32])
    return found


def encode_shard(job: ImagesJob, files: ShardFiles, reading: Reading) -> Summary:
    """Read and encode the images of a shard; write what became of each, and features.

    Raises:
        InputError: the disk is full.
    """
    found: list[dict[str, Any]] = []
    batches: list[Encoded] = []
    waiting: list[np.ndarray] = []

    def encode() -> None:
        if waiting:
            batches.append(reading.encoder.encode_images(np.stack(waiting)))
            waiting.clear()

    n_usable = 0
    for row, pixels in _read_all(job, reading):
        found.append(row | {"row": -1 if pixels is None else n_usable})
        if pixels is not None:
            waiting.append(pixels)
            n_usable += 1
        if len(waiting) == job.batch_size:
            encode()
    encode()
    if batches:
        encoded = join(batches)
        files.write_npy(".features.npy", encoded.features)
        if encoded.projections is not None:
            files.write_npy(".projections.npy", encoded.projections)
    with files.writing(".parquet") as file:
        pq.write_table(pa.Table.from_pylist(found, OUTCOMES), file)
    return {"images": len(job.keys), "usable": n_usable}


def _read_all(
    job: ImagesJob, reading: Reading
) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """What became of every image of a shard, and its pixels, read ahead by a bounded number."""
    asked = zip(job.keys, job.captions, strict=True)
    if not job.n_threads:
        yield from (_read_one(reading, *each) for each in asked)
        return
    with ThreadPoolExecutor(job.n_threads) as pool:
        pending = [
            pool.submit(_read_one, reading, *each)
            for each in islice(asked, READ_AHEAD * job.n_threads)
        ]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(_read_one, reading, *each) for each in islice(asked, 1)]


def _read_one(
    reading: Reading, key: str, captions: tuple[str, ...]
) -> tuple[dict[str, Any], np.ndarray | None]:
    outcome = read_record(key, partial(reading.source.read_image, key), reading.decode)
    if isinstance(outcome, UnusableImage):
        told = {"sha256": "", "reason": outcome.reason, "detail": outcome.detail, "ids": []}
        return told, None
    told = {"sha256": outcome.sha256, "reason": "", "detail": ""}
    return told | {"ids": _pair_ids(outcome.hash, captions)}, outcome.pixels


# --- What is made of it ---------------------------------------------------------------------------


class ShardReader(PairReader):
    """A `PairReader` whose images are read shard by shard.

    What it hands on in the place of pixels is the shard and row that features are in.
    """

    def __init__(
        self,
        source: PairSource,
        config: DataConfig,
        room: StageRoom,
        setup: Setup[Reading],
        batch_size: int,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: every image of which can be reached at any time.
            config: limits and threads.
            room: where shards are worked on.
            setup: what a worker opens.
            batch_size: images that are encoded at once.
        """
        super().__init__(source, config, decode=_not_asked)
        self._room, self._setup, self._batch_size = room, setup, batch_size
        self._shards: list[Made] = []
        self._n_waves = 0

    def features(self, places: Int64[np.ndarray, "m 2"]) -> Encoded:
        """What was encoded, by shard and row."""
        shards = np.unique(places[:, 0]).tolist()
        features = self._gather(places, shards, ".features.npy")
        first = self._shards[shards[0]]
        has_projections = first.file(".projections.npy").exists()
        return Encoded(
            features, self._gather(places, shards, ".projections.npy") if has_projections else None
        )

    def threads_a_worker(self, n_shards: int) -> int:
        """Threads that read, shared among the workers that are at work on so many shards."""
        n_workers = self._room.engine.workers_a_machine(self._setup.on_gpu)
        return math.ceil(self._config.num_workers / min(n_workers, n_shards))

    def _gather(
        self, places: Int64[np.ndarray, "m 2"], shards: Sequence[int], ending: str
    ) -> Float32[np.ndarray, "m d"]:
        rows: np.ndarray | None = None
        for shard in shards:
            here = places[:, 0] == shard
            values = self._shards[shard].load(ending)
            if rows is None:
                rows = np.empty((len(places), values.shape[1]), np.float32)
            rows[here] = values[places[here, 1]]
        assert rows is not None, "a split has an image"
        return rows

    def _outcomes(
        self, split: str, known: Mapping[str, FoundImage | UnusableImage]
    ) -> Iterator[tuple[ImageRecord, FoundImage | UnusableImage]]:
        """As those of `PairReader`; no more is asked for at once than the split still needs."""
        records = self.source.records(split)
        while self._wanted(split) > 0:
            wave = self._next_hand(split, records, (), NO_LIMIT)
            if not wave:
                return
            found = self._read_wave(split, [r for r in wave if r.key not in known])
            for record in wave:
                outcome = known.get(record.key) or record.problem or found.get(record.key)
                yield record, outcome or UnusableImage("")  # its captions are judged, not the image

    def _read_wave(self, split: str, records: Sequence[ImageRecord]) -> dict[str, Any]:
        """What became of images, by their keys, each read once."""
        asked = {r.key: r for r in records if r.problem is None and has_usable_caption(r)}
        if not asked:
            return {}
        every = list(asked.values())
        hands = [every[i : i + IMAGES_A_SHARD] for i in range(0, len(every), IMAGES_A_SHARD)]
        self._n_waves += 1
        n_threads = self.threads_a_worker(len(hands))
        made = self._room.run(
            f"images {split} {self._n_waves}",
            encode_shard,
            [self._job(hand, n_threads) for hand in hands],
            sizes=[len(hand) for hand in hands],
            unit="image",
            setup=self._setup,
        )
        found: dict[str, Any] = {}
        for shard, hand in zip(made, hands, strict=True):
            rows = pq.read_table(shard.file(".parquet")).to_pylist()
            for record, row in zip(hand, rows, strict=True):
                found[record.key] = self._outcome(record, row)
            self._shards.append(shard)
        return found

    def _job(self, hand: Sequence[ImageRecord], n_threads: int) -> ImagesJob:
        return ImagesJob(
            tuple(record.key for record in hand),
            tuple(_usable_texts(record) for record in hand),
            self._batch_size,
            n_threads,
        )

    def _outcome(self, record: ImageRecord, row: Mapping[str, Any]) -> ReadImage | UnusableImage:
        if row["reason"]:
            return UnusableImage(row["reason"], row["detail"])
        ids = dict(zip(_usable_texts(record), row["ids"], strict=True))
        place = np.array([len(self._shards), row["row"]])
        return ReadImage(row["sha256"], ids, record, place)


def _usable_texts(record: ImageRecord) -> tuple[str, ...]:
    """The captions of a record that make pairs, as they are named."""
    texts = (c.text for c in record.captions if caption_fault(c.text) is None)
    return tuple(dict.fromkeys(str(text).strip() for text in texts))


def _not_asked(data: bytes) -> np.ndarray:
    raise AssertionError("images are decoded in shards")
