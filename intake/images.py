"""Images read, hashed, decoded and encoded shard by shard, by any worker, and taken in order.

A shard is a stretch of the candidates of a split, in the order in which they are tried. Which pairs
are kept is decided as `PairReader` decides, of what the shards have found; features stay in their
files until they are wanted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from data import PairReader, has_usable_caption, read_record, usable_texts
from encoders.base import Encoded, join
from engine.base import Setup
from engine.room import Made, StageRoom
from engine.shards import ShardFiles, Summary
from intake.setup import Reading
from sources.base import NO_LIMIT, DataConfig, ImageRecord, PairSource, UnusableImage
from sources.images import FoundImage, ReadImage, pair_ids
from sources.processes import AskedImage, ImageReaders

IMAGES_A_SHARD = 512
SHARDS_ON_GPU = 8  # as many in one: between two shards a GPU waits for the first images
READ_AHEAD = 2  # images, or hands of them, for each thread that reads; bounds memory
Outcome = tuple[dict[str, Any], np.ndarray | None]
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
        batch_size: images that are encoded at once, a number or `auto`.
        n_threads: that read and decode; 0 reads in the worker's own.
        in_processes: whether each has a process that does it.
    """

    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    batch_size: int | str
    n_threads: int
    in_processes: bool = False


def encode_shard(job: ImagesJob, files: ShardFiles, reading: Reading) -> Summary:
    """Read and encode the images of a shard; write what became of each, and features.

    Raises:
        InputError: the disk is full.
    """
    found: list[dict[str, Any]] = []

    def usable() -> Generator[np.ndarray, None, None]:
        n_usable = 0
        with closing(_read_all(job, reading)) as outcomes:
            for row, pixels in outcomes:
                found.append(row | {"row": -1 if pixels is None else n_usable})
                if pixels is not None:
                    n_usable += 1
                    yield pixels

    with closing(usable()) as images:
        size = reading.encoder.batch_size(job.batch_size)
        batches = list(reading.encoder.image_batches(images, size))
    if batches:
        encoded = join(batches)
        files.write_npy(".features.npy", encoded.features)
        if encoded.projections is not None:
            files.write_npy(".projections.npy", encoded.projections)
    with files.writing(".parquet") as file:
        pq.write_table(pa.Table.from_pylist(found, OUTCOMES), file)
    return {"images": len(job.keys), "usable": sum(row["row"] >= 0 for row in found)}


def _read_all(job: ImagesJob, reading: Reading) -> Generator[Outcome, None, None]:
    """What became of every image of a shard, and its pixels, read ahead by a bounded number."""
    asked = list(zip(job.keys, job.captions, strict=True))
    if not job.n_threads:
        yield from (_read_one(reading, *each) for each in asked)
        return
    processes = reading.processes if job.in_processes else None
    at_once = 1 if processes is None else processes.images_a_hand
    hands = iter([asked[i : i + at_once] for i in range(0, len(asked), at_once)])
    read = partial(_read_hand, reading, processes)
    with ThreadPoolExecutor(job.n_threads) as pool:
        first = islice(hands, READ_AHEAD * job.n_threads)
        pending = deque(pool.submit(read, hand) for hand in first)
        try:
            while pending:
                yield from pending.popleft().result()
                pending.extend(pool.submit(read, hand) for hand in islice(hands, 1))
        finally:
            for future in pending:
                future.cancel()


def _read_hand(
    reading: Reading, processes: ImageReaders | None, hand: Sequence[tuple[str, tuple[str, ...]]]
) -> list[Outcome]:
    """What became of some images, read by this thread or by a process that it asks."""
    if processes is None:
        return [_read_one(reading, *each) for each in hand]
    asked = [AskedImage(key, reading.source.reader_of(key), captions) for key, captions in hand]
    found: list[Outcome] = []
    for sent in processes.read(asked):
        if isinstance(sent, UnusableImage):
            found.append(_unusable(sent))
        else:
            told = {"sha256": sent.sha256, "reason": "", "detail": ""}
            found.append((told | {"ids": list(sent.ids.values())}, sent.pixels))
    return found


def _read_one(reading: Reading, key: str, captions: tuple[str, ...]) -> Outcome:
    outcome = read_record(key, reading.source.reader_of(key), reading.decode)
    if isinstance(outcome, UnusableImage):
        return _unusable(outcome)
    told = {"sha256": outcome.sha256, "reason": "", "detail": ""}
    return told | {"ids": pair_ids(outcome.hash, captions)}, outcome.pixels


def _unusable(outcome: UnusableImage) -> Outcome:
    told = {"sha256": "", "reason": outcome.reason, "detail": outcome.detail, "ids": []}
    return told, None


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
        batch_size: int | str,
        processes: ImageReaders | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: every image of which can be reached at any time.
            config: limits and threads.
            room: where shards are worked on.
            setup: what a worker opens.
            batch_size: images that are encoded at once.
            processes: as those that a worker reads with; None: it has none.
        """
        super().__init__(source, config, decode=_not_asked, processes=processes)
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
        return math.ceil(self._config.n_workers() / min(n_workers, n_shards))

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
        size = IMAGES_A_SHARD * (SHARDS_ON_GPU if self._setup.on_gpu else 1)
        hands = [every[i : i + size] for i in range(0, len(every), size)]
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
            tuple(usable_texts(record) for record in hand),
            self._batch_size,
            n_threads,
            self.is_in_processes(),
        )

    def _outcome(self, record: ImageRecord, row: Mapping[str, Any]) -> ReadImage | UnusableImage:
        if row["reason"]:
            return UnusableImage(row["reason"], row["detail"])
        ids = dict(zip(usable_texts(record), row["ids"], strict=True))
        place = np.array([len(self._shards), row["row"]])
        return ReadImage(row["sha256"], ids, record, place)


def _not_asked(data: bytes) -> np.ndarray:
    raise AssertionError("images are decoded in shards")
