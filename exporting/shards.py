"""Shards of images, written by whatever workers there are, or in one pass over a stream.

Which pair is in which shard is settled before the first image is read, so that an interrupted
export goes on where it stopped and ends with the same bytes, whoever writes which shard.
"""

from __future__ import annotations

import json
import logging
import platform
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from artifacts.settings import InputError
from artifacts.store import Store
from exporting.folder import (
    MANIFEST,
    RECORDS,
    FormatReport,
    Job,
    Workers,
    claim,
    complete,
    csv_text,
)
from exporting.images import IMAGE_CHANGED, NO_IMAGE, ImageFile, Prepare, read_pairs
from sources.base import PairSource

logger = logging.getLogger(__name__)
NOT_EXPORTED = "not_exported.csv"
PAIRS = ".pairs.tmp"  # those of shards that workers write, while they do
DIGITS = 5  # of a shard's number, at least


class ShardWriter(ABC):
    """Writes the pairs of one shard."""

    @abstractmethod
    def add(self, pair: Any, image: ImageFile) -> None:
        """Add one pair."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and the end of the file."""


@dataclass(frozen=True)
class Shard:
    """One file of a format, and the pairs that it is to hold."""

    name: str  # path in the format's folder
    rows: np.ndarray  # of the table, ascending


@dataclass
class Record:
    """What a shard holds; kept beside it, so that a later run knows."""

    pairs: int = 0
    bytes: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    not_exported: list[list[str]] = field(default_factory=list)  # id, key, reason


@dataclass
class _OpenShard:
    name: str
    n_left: int
    writer: ShardWriter
    stack: ExitStack  # closing it makes the shard whole
    record: Record = field(default_factory=Record)

    def add(self, pair: Any, outcome: ImageFile | str) -> None:
        self.n_left -= 1
        if isinstance(outcome, ImageFile) and pair.image_sha256 not in ("", outcome.source_sha256):
            outcome = IMAGE_CHANGED
        if isinstance(outcome, str):
            self.record.not_exported.append([pair.name, pair.key, outcome])
            return
        self.writer.add(pair, outcome)
        self.record.pairs += 1
        if outcome.converted_from:
            n_before = self.record.converted.get(outcome.converted_from, 0)
            self.record.converted[outcome.converted_from] = n_before + 1


@dataclass(frozen=True)
class ShardFormat:
    """What sets one format with images apart.

    Attributes:
        plan: the shards; together they hold every row once.
        writer: of one shard.
        prepare: makes of a file what is written.
        finish: what belongs beside the shards, and the lines of the report.
    """

    plan: Callable[[Job], list[Shard]]
    writer: Callable[[BinaryIO], ShardWriter]
    prepare: Prepare
    finish: Callable[[Job, list[Shard], dict[str, Record]], tuple[dict[str, str], list[str]]]


def export_in_shards(job: Job, format_: ShardFormat) -> FormatReport:
    """Export in a format that holds images.

    Raises:
        InputError: a folder in the way that no export wrote, a full disk, or not a single image
            that can be read.
    """
    shards = format_.plan(job)
    names = [name for shard in shards for name in (shard.name, _record_name(shard.name))]
    claim(job, names)
    records = _write_shards(job, format_, shards)
    left_out = [row for shard in shards for row in records[shard.name].not_exported]
    reasons = Counter(reason for _, _, reason in left_out)
    if len(left_out) == len(job.table):
        job.store.remove_files(job.folder, [*names, MANIFEST])
        raise InputError(_nothing_exported(job, reasons))
    extras, lines = format_.finish(job, shards, records)
    if left_out:
        extras[NOT_EXPORTED] = csv_text(pd.DataFrame(left_out, columns=["id", "key", "reason"]))
        logger.warning(
            "--export %s: %d of %d pairs are left out (%s), see %s; put their images back, delete "
            "%s and run again",
            *(job.name, len(left_out), len(job.table)),
            *(_counted(reasons), job.place(NOT_EXPORTED), job.place()),
        )
        lines.append(f"{len(left_out):,} pairs left out, see {job.place(NOT_EXPORTED)}")
    converted: Counter[str] = Counter()
    for shard in shards:
        converted.update(records[shard.name].converted)
    if converted:
        lines.append(f"converted to PNG, which open_clip reads: {_counted(converted)}")
    return complete(job, names, extras, lines, len(left_out), sum(converted.values()))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))


def _nothing_exported(job: Job, reasons: Counter[str]) -> str:
    if set(reasons) == {NO_IMAGE}:
        return (
            f"--export {job.name}: images are needed, and this data set has none to read; "
            "use --export list,datacomp"
        )
    return (
        f"--export {job.name}: none of the {len(job.table):,} images can be read again "
        f"({_counted(reasons)}); put the data set back as it was and run again"
    )


def _write_shards(job: Job, format_: ShardFormat, shards: list[Shard]) -> dict[str, Record]:
    """Write the shards that are not there yet; the records of all."""
    records = {shard.name: record for shard in shards if (record := _whole(job, shard.name))}
    missing = [shard for shard in shards if shard.name not in records]
    if not missing:
        return records
    if records:
        logger.info("--export %s: %d of %d shards are there", job.name, len(records), len(shards))
    source = job.source()
    if job.workers is not None and source.can_go_back and len(missing) > 1:
        return records | _write_side_by_side(job, format_, missing, source, job.workers)
    return records | _write_in_one_pass(job, format_, missing, source)


# --- In one pass ----------------------------------------------------------------------------------


def _write_in_one_pass(
    job: Job, format_: ShardFormat, missing: list[Shard], source: PairSource
) -> dict[str, Record]:
    """The records of shards, written as the data set gives their images.

    A shard is closed with its last pair, and the pairs of a weight are in the order of reading,
    so that no more shards are open than there are weights.
    """
    records = dict[str, Record]()
    number = np.full(len(job.table), -1)
    for i, shard in enumerate(missing):
        number[shard.rows] = i
    todo = job.table.assign(shard=number)[number >= 0]
    unfinished: dict[int, _OpenShard] = {}
    with ExitStack() as stack:
        outcomes = stack.enter_context(
            closing(read_pairs(todo, source, format_.prepare, job.n_workers))
        )
        progress = stack.enter_context(
            tqdm(total=len(todo), desc=f"export {job.name}", unit="pair", disable=None, leave=False)
        )
        for pairs, outcome in outcomes:
            for pair in pairs:
                if pair.shard not in unfinished:
                    shard = missing[pair.shard]
                    own, place = stack.enter_context(ExitStack()), (job.store, job.folder)
                    unfinished[pair.shard] = _open(
                        place, shard.name, len(shard.rows), format_.writer, own
                    )
                current = unfinished[pair.shard]
                current.add(pair, outcome)
                if not current.n_left:
                    records[current.name] = _close(
                        (job.store, job.folder), unfinished.pop(pair.shard)
                    )
            progress.update(len(pairs))
    return records


def _open(
    place: tuple[Store, str],
    name: str,
    n_pairs: int,
    writer: Callable[[BinaryIO], ShardWriter],
    stack: ExitStack,
) -> _OpenShard:
    """A shard's file, which `stack` throws away unless `_close` comes first."""
    store, folder = place
    writing = writer(stack.enter_context(store.writing(f"{folder}/{name}")))
    stack.callback(writing.close)
    return _OpenShard(name, n_pairs, writing, stack)


def _close(place: tuple[Store, str], shard: _OpenShard) -> Record:
    store, folder = place
    shard.stack.close()
    shard.record.bytes = (store.root / folder / shard.name).stat().st_size
    store.write_json(f"{folder}/{_record_name(shard.name)}", asdict(shard.record))
    return shard.record


# --- Side by side ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ShardJob:
    """A shard that is written by itself.

    Attributes:
        place: the run's folder, and the format's in it.
        name: of the shard.
        number: of the row group that holds its pairs, in the file `PAIRS`.
        writer: see `ShardFormat`.
        prepare: the same.
        n_workers: threads that read images.
    """

    place: tuple[Store, str]
    name: str
    number: int
    writer: Callable[[BinaryIO], ShardWriter]
    prepare: Prepare
    n_workers: int


def _write_side_by_side(
    job: Job, format_: ShardFormat, missing: list[Shard], source: PairSource, workers: Workers
) -> dict[str, Record]:
    """The records of shards, each written by one worker."""
    place = Store(job.store.root.resolve()), job.folder  # workers may have another folder
    jobs = [
        _ShardJob(place, shard.name, i, format_.writer, format_.prepare, job.n_workers)
        for i, shard in enumerate(missing)
    ]
    try:
        _write_pairs(job, missing)
        workers.engine.offer(workers.setup, source)
        records = workers.engine.map(
            *(write_shard, jobs),
            description=f"export {job.name}",
            unit="pair",
            sizes=[len(shard.rows) for shard in missing],
            setup=workers.setup,
        )
        return {
            shard.name: Record(**record) for shard, record in zip(missing, records, strict=True)
        }
    finally:  # `PAIRS`, and what workers left that were killed
        job.store.remove_temporary(job.folder)


def _write_pairs(job: Job, shards: Sequence[Shard]) -> None:
    """What workers have to know of the pairs of each shard, which is too much to be sent."""
    pairs = pa.Table.from_pandas(job.table, preserve_index=False)
    with (
        job.store.writing(f"{job.folder}/{PAIRS}") as file,
        pq.ParquetWriter(file, pairs.schema) as writer,
    ):
        for shard in shards:
            writer.write_table(pairs.take(pa.array(shard.rows)), row_group_size=len(shard.rows))


def write_shard(job: _ShardJob, source: PairSource) -> dict[str, Any]:
    """Write a shard and its record, which is returned.

    Raises:
        InputError: the folder cannot be read or written, or the data set not be read.
    """
    store, folder = job.place
    path = store.root / folder / PAIRS
    try:
        pairs = pq.ParquetFile(path).read_row_group(job.number).to_pandas()
    except OSError as error:
        raise InputError(
            f"--output_dir: {path} cannot be read on {platform.node()} ({error.strerror or error}"
            "); all workers need --output_dir under the same path, on shared storage"
        ) from error
    with ExitStack() as stack:
        outcomes = stack.enter_context(
            closing(read_pairs(pairs, source, job.prepare, job.n_workers))
        )
        own = stack.enter_context(ExitStack())
        current = _open(job.place, job.name, len(pairs), job.writer, own)
        for members, outcome in outcomes:
            for pair in members:
                current.add(pair, outcome)
        return asdict(_close(job.place, current))


# --- Records --------------------------------------------------------------------------------------


def _record_name(shard: str) -> str:
    return f"{RECORDS}/{shard}.json"


def _whole(job: Job, shard: str) -> Record | None:
    """What a shard holds that an earlier run finished; None where it has to be written."""
    folder = job.store.root / job.folder
    try:
        record = Record(**json.loads((folder / _record_name(shard)).read_bytes()))
        return record if (folder / shard).stat().st_size == record.bytes else None
    except (OSError, ValueError, TypeError):
        return None


# --- What formats share ---------------------------------------------------------------------------


def even_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Even consecutive parts of at most `size` rows."""
    return np.array_split(rows, -(-len(rows) // size))


def n_digits(n: int) -> int:
    """Digits of a shard's number where there are `n`: DIGITS, or more if they need it."""
    return max(DIGITS, len(str(n - 1)))


def finite_or_none(value: float) -> float | None:
    """A number as JSON and tables take it: None where it is not known."""
    return float(value) if np.isfinite(value) else None
