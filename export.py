"""The curated set as trainers read it: shards, tables, a DataComp subset, a list.

    webdataset   tar shards of image, caption and JSON, by weight; for open_clip
    datacomp     `subset.npy`, the kept 128-bit names; for DataComp's resharder
    parquet      a folder for `datasets.load_dataset` and for the Hub
    hf           a folder for `datasets.load_from_disk`
    list         `curated.csv`

Images are read again from the data set, once a format and in its order, and written as they are.
Which pair is in which shard is settled before the first image is read, so that an interrupted
export goes on where it stopped and ends with the same bytes. At most one shard a weight is open,
and a bounded number of images is held, however large the data set is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import shlex
import sys
import tarfile
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from tqdm import tqdm

from artifacts import Store
from data import MISSING_FILE, UNREADABLE_FILE, PairSource, UnusableImage, decode_image
from settings import InputError, Settings, setting

logger = logging.getLogger(__name__)

EXPORT_VERSION = 1  # raise when what is written changes: earlier exports are then written anew
FORMATS = ("webdataset", "datacomp", "parquet", "hf", "list")
FOLDER = "curated"
MANIFEST = "export.json"
NOT_EXPORTED = "not_exported.csv"
RECORDS = ".shards"  # a record of every whole shard, for the run that goes on
SCRIPT = "train_open_clip.sh"

MAX_BUCKETS = 8
WEIGHT_TOLERANCE = 0.1  # a pair's weight may differ from its bucket's by this share of it
DIGITS = 5  # of a shard's number, at least
GROUP_ROWS = 100  # of a table that are written at once,
GROUP_BYTES = 2**27  # or fewer, where their images fill this much
LIST_ROWS = 10_000  # of the list that are put into words at once
MAX_WORKERS = 4  # of the training command where every worker needs a shard

IMAGE_GONE = "no longer in the data set"
IMAGE_CHANGED = "image changed"
NO_IMAGE = "no image in the data set"

# What open_clip reads, by its first bytes; an image of another kind it drops without a word.
_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF....WEBP"}


@dataclass(frozen=True)
class ExportConfig(Settings):
    """How the curated set is written for trainers."""

    export: tuple[str, ...] = setting(
        (),
        "also write the curated set, images included, to <output_dir>/curated",
        choices=FORMATS,
        affects_result=False,
    )
    export_shard_size: int = setting(10_000, "pairs a shard of the export, at most", at_least=1)


@dataclass(frozen=True)
class FormatReport:
    """What was written in one format.

    Attributes:
        name: one of `FORMATS`.
        folder: where it lies.
        files: number of files in it.
        bytes: of these files together.
        pairs: pairs written.
        not_exported: pairs whose image could not be read again.
        converted: pairs whose image was converted to PNG.
        lines: for people: what it is and how to use it.
    """

    name: str
    folder: str
    files: int
    bytes: int
    pairs: int
    not_exported: int
    converted: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ExportReport:
    """What was written, format by format."""

    formats: tuple[FormatReport, ...]

    def lines(self) -> tuple[str, ...]:
        """Everything to be shown, in the order of the formats."""
        return tuple(line for report in self.formats for line in report.lines)


def export_curated(
    curated: pd.DataFrame,
    source: Callable[[], PairSource],
    store: Store,
    config: ExportConfig,
    *,
    fingerprint: str,
    about: Mapping[str, str],
    n_workers: int = 4,
) -> ExportReport:
    """Write the curated set in every format asked for; formats without images come first.

    What an earlier call with the same fingerprint wrote is kept, of another one it is replaced.
    A pair whose image cannot be read, or is not the same any more, is left out and listed.

    Args:
        curated: a row a kept pair, sorted by position, with position, id, uid, key, caption,
            image_sha256 ("" where it is not known and not to be compared), weight (mean one),
            cluster, cell, clip_score, influence (NaN where it was not estimated), evaluated and
            group.
        source: opens the data set anew.
        store: the run's folder.
        config: formats and shard size.
        fingerprint: stands for everything that the export depends on beside `config`.
        about: facts for the data set card, in order.
        n_workers: threads that read images; 0 reads in the main one.

    Raises:
        InputError: nothing to export, a folder in the way that no export wrote, a full disk, or
            not a single image that can be read.
    """
    if not config.export:
        return ExportReport(())
    if curated.empty:
        raise InputError("--export: no pair was kept; raise --target_size_ratio")
    table = _in_reading_order(curated)
    digests = {
        name: _digest(EXPORT_VERSION, name, fingerprint, config.fingerprint_settings())
        for name in config.export
    }
    reports = {}
    for name in sorted(config.export, key=lambda name: name in _IMAGE_FORMATS):
        job = _Job(name, table, source, store, config, digests[name], about, n_workers)
        reports[name] = _WITHOUT_IMAGES.get(name, _export_images)(job)
        report = reports[name]
        logger.info(
            *("export     %s: %d pairs, %d files, %d bytes in %s", name, report.pairs),
            *(report.files, report.bytes, report.folder),
        )
    return ExportReport(tuple(reports[name] for name in config.export))


@dataclass(frozen=True)
class _Job:
    """One format's export."""

    name: str
    table: pd.DataFrame  # see `_in_reading_order`
    source: Callable[[], PairSource]
    store: Store
    config: ExportConfig
    fingerprint: str  # of this format
    about: Mapping[str, str]
    n_workers: int

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.name}"

    def place(self, name: str = "") -> str:
        """A file's path for people, quoted for a shell."""
        return shlex.quote(str(self.store.root.resolve() / self.folder / name))


def _in_reading_order(curated: pd.DataFrame) -> pd.DataFrame:
    """The pairs by position, those of one image beside its first, each with a name of its own.

    The column `name` is the id; a second pair of the same id gets -2, a third -3.
    """
    first = curated.groupby("key", sort=False)["position"].transform("min")
    table = curated.iloc[np.lexsort((curated["position"], first))].reset_index(drop=True)
    turn = table.groupby("id", sort=False).cumcount() + 1
    names = table["id"].where(turn == 1, table["id"] + "-" + turn.astype(str))
    named: pd.DataFrame = table.assign(name=names)
    return named


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- Weights --------------------------------------------------------------------------------------


def weight_buckets(
    weights: Float[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " b"]]:
    """Pairs of like weight together: the bucket of each, and each bucket's mean weight.

    Each bucket takes all weights from the smallest that is left up to (1 + WEIGHT_TOLERANCE)
    times that. Where this would need more than MAX_BUCKETS, the factor is the smallest that needs
    no more. A mean lies between its bucket's ends, so that no pair's weight is off by more than
    the factor, and the sum over all pairs stays as it is.

    Args:
        weights: non-negative.

    Returns:
        Buckets from 0 by rising weight, none empty, and their mean weights, (b,).
    """
    distinct, ranks = np.unique(weights, return_inverse=True)
    low = 1 + WEIGHT_TOLERANCE
    starts = _bucket_starts(distinct, low)
    if len(starts) > MAX_BUCKETS:
        positive = distinct[distinct > 0]
        high = float(positive[-1] / positive[0]) * (1 + 1e-9)  # surely one bucket, with a zero two
        for _ in range(60):
            middle = float(np.sqrt(low) * np.sqrt(high))
            if len(_bucket_starts(distinct, middle)) > MAX_BUCKETS:
                low = middle
            else:
                high = middle
        starts = _bucket_starts(distinct, high)
    buckets = np.searchsorted(np.array(starts), np.asarray(ranks), side="right") - 1
    return buckets, np.bincount(buckets, weights=weights) / np.bincount(buckets)


def _bucket_starts(distinct: np.ndarray, factor: float) -> list[int]:
    """Where buckets begin that each reach from a weight to `factor` times it."""
    starts, n = [0], len(distinct)
    while (end := int(np.searchsorted(distinct, distinct[starts[-1]] * factor, "right"))) < n:
        starts.append(end)
    return starts


def _bucket_names(factors: Sequence[float]) -> list[str]:
    """Folder names with two decimals, or with as many as tell the buckets apart."""
    for digits in range(2, 17):
        names = [f"weight-{factor:.{digits}f}" for factor in factors]
        if len(set(names)) == len(names):
            return names
    return [f"weight-{number}" for number in range(len(factors))]


# --- Images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
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


def _as_it_is(data: bytes, sha256: str) -> _Image:
    return _Image(data, image_extension(data), sha256)


def _for_open_clip(data: bytes, sha256: str) -> _Image:
    """The file itself, or the first frame as PNG where open_clip would not read it.

    Raises:
        UnusableImage: it cannot be converted.
    """
    extension = image_extension(data)
    if extension in _MAGIC:
        return _Image(data, extension, sha256)
    buffer = io.BytesIO()
    # No limit of its own: the very same bytes were decoded when the pairs were read.
    decode_image(data, sys.maxsize).save(buffer, format="PNG")
    return _Image(buffer.getvalue(), "png", sha256, extension or "unknown")


Prepare = Callable[[bytes, str], _Image]
T = TypeVar("T")


def _read(read: Callable[[], bytes], expected: set[str], prepare: Prepare) -> _Image | str:
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
    except Exception as error:  # a source may read through any library
        logger.debug("an image cannot be read again: %r", error)
        return UNREADABLE_FILE


def _next(readers: Iterator[T]) -> T | None:
    try:
        return next(readers, None)
    except OSError as error:  # of the data set as a whole, which is no error of writing
        raise InputError(f"--export: the data set cannot be read again: {error}") from error


def _read_pairs(
    todo: pd.DataFrame, source: PairSource, prepare: Prepare, n_workers: int
) -> Generator[tuple[list[Any], _Image | str], None, None]:
    """The pairs of every image, with it or with why it cannot be had, in the order of `todo`.

    `source` may leave images out but gives the others in the order asked for. Images are read
    ahead by a bounded number.
    """
    groups = groupby(todo.itertuples(index=False), key=attrgetter("key"))
    readers = source.read_again(todo["key"].drop_duplicates().tolist())
    executor = ThreadPoolExecutor(n_workers) if n_workers else None
    pending: deque[tuple[list[Any], Callable[[], _Image | str]]] = deque()  # pairs, image
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
    pending: deque[tuple[list[Any], Callable[[], _Image | str]]], n_left: int
) -> Iterator[tuple[list[Any], _Image | str]]:
    while len(pending) > n_left:
        pairs, get = pending.popleft()
        yield pairs, get()


# --- Shards ---------------------------------------------------------------------------------------


class _Writer(ABC):
    """Writes the pairs of one shard."""

    @abstractmethod
    def add(self, pair: Any, image: _Image) -> None:
        """Add one pair."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and the end of the file."""


@dataclass(frozen=True)
class _Shard:
    name: str  # path in the format's folder
    rows: np.ndarray  # of the table, ascending


@dataclass
class _Record:
    """What a shard holds; kept beside it, so that a later run knows."""

    pairs: int = 0
    bytes: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    not_exported: list[list[str]] = field(default_factory=list)  # id, key, reason


@dataclass
class _OpenShard:
    name: str
    n_left: int
    writer: _Writer
    stack: ExitStack  # closing it makes the shard whole
    record: _Record = field(default_factory=_Record)

    def add(self, pair: Any, outcome: _Image | str) -> None:
        self.n_left -= 1
        if isinstance(outcome, _Image) and pair.image_sha256 not in ("", outcome.source_sha256):
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
class _ImageFormat:
    """What sets one format with images apart.

    Attributes:
        plan: the shards; together they hold every row once.
        writer: of one shard.
        prepare: makes of a file what is written.
        finish: what belongs beside the shards, and the lines of the report.
    """

    plan: Callable[[_Job], list[_Shard]]
    writer: Callable[[BinaryIO], _Writer]
    prepare: Prepare
    finish: Callable[[_Job, list[_Shard], dict[str, _Record]], tuple[dict[str, str], list[str]]]


def _export_images(job: _Job) -> FormatReport:
    """Export in a format that holds images.

    Raises:
        InputError: see `export_curated`.
    """
    format_ = _IMAGE_FORMATS[job.name]
    shards = format_.plan(job)
    names = [name for shard in shards for name in (shard.name, _record_name(shard.name))]
    _claim(job, names)
    records = _write_shards(job, format_, shards)
    left_out = [row for shard in shards for row in records[shard.name].not_exported]
    reasons = Counter(reason for _, _, reason in left_out)
    if len(left_out) == len(job.table):
        job.store.remove_files(job.folder, [*names, MANIFEST])
        raise InputError(_nothing_exported(job, reasons))
    extras, lines = format_.finish(job, shards, records)
    if left_out:
        extras[NOT_EXPORTED] = _csv(pd.DataFrame(left_out, columns=["id", "key", "reason"]))
        logger.warning(
            "--export %s: %d of %d pairs are left out (%s), see %s; delete the folder to try again",
            *(job.name, len(left_out), len(job.table)),
            *(_counted(reasons), job.place(NOT_EXPORTED)),
        )
        lines.append(f"{len(left_out):,} pairs left out, see {job.place(NOT_EXPORTED)}")
    converted: Counter[str] = Counter()
    for shard in shards:
        converted.update(records[shard.name].converted)
    if converted:
        lines.append(f"converted to PNG, which open_clip reads: {_counted(converted)}")
    return _complete(job, names, extras, lines, len(left_out), sum(converted.values()))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))


def _nothing_exported(job: _Job, reasons: Counter[str]) -> str:
    if set(reasons) == {NO_IMAGE}:
        return (
            f"--export {job.name}: images are needed, and this data set has none to read; "
            "use --export list datacomp"
        )
    return (
        f"--export {job.name}: none of the {len(job.table):,} images can be read again "
        f"({_counted(reasons)}); put the data set back as it was"
    )


def _write_shards(job: _Job, format_: _ImageFormat, shards: list[_Shard]) -> dict[str, _Record]:
    """Write the shards that are not there yet, in one pass over the data set.

    A shard is closed with its last pair, and the pairs of a weight are in the order of reading,
    so that no more shards are open than there are weights.
    """
    records = {shard.name: record for shard in shards if (record := _whole(job, shard.name))}
    missing = [shard for shard in shards if shard.name not in records]
    if not missing:
        return records
    if records:
        logger.info("--export %s: %d of %d shards are there", job.name, len(records), len(shards))
    number = np.full(len(job.table), -1)
    for i, shard in enumerate(missing):
        number[shard.rows] = i
    todo = job.table.assign(shard=number)[number >= 0]
    unfinished: dict[int, _OpenShard] = {}
    with ExitStack() as stack:
        outcomes = stack.enter_context(
            closing(_read_pairs(todo, job.source(), format_.prepare, job.n_workers))
        )
        progress = stack.enter_context(
            tqdm(total=len(todo), desc=f"export {job.name}", unit="pair", disable=None, leave=False)
        )
        for pairs, outcome in outcomes:
            for pair in pairs:
                if pair.shard not in unfinished:
                    shard = missing[pair.shard]
                    unfinished[pair.shard] = _open(job, format_, shard, stack)
                current = unfinished[pair.shard]
                current.add(pair, outcome)
                if not current.n_left:
                    records[current.name] = _close(job, unfinished.pop(pair.shard))
            progress.update(len(pairs))
    return records


def _open(job: _Job, format_: _ImageFormat, shard: _Shard, stack: ExitStack) -> _OpenShard:
    """A shard's file, which `stack` throws away unless `_close` comes first."""
    own = stack.enter_context(ExitStack())
    writer = format_.writer(own.enter_context(job.store.writing(f"{job.folder}/{shard.name}")))
    own.callback(writer.close)
    return _OpenShard(shard.name, len(shard.rows), writer, own)


def _close(job: _Job, shard: _OpenShard) -> _Record:
    shard.stack.close()
    path = job.store.root / job.folder / shard.name
    shard.record.bytes = path.stat().st_size
    job.store.write_json(f"{job.folder}/{_record_name(shard.name)}", asdict(shard.record))
    return shard.record


def _record_name(shard: str) -> str:
    return f"{RECORDS}/{shard}.json"


def _whole(job: _Job, shard: str) -> _Record | None:
    """What a shard holds that an earlier run finished; None where it has to be written."""
    folder = job.store.root / job.folder
    try:
        record = _Record(**json.loads((folder / _record_name(shard)).read_bytes()))
        return record if (folder / shard).stat().st_size == record.bytes else None
    except (OSError, ValueError, TypeError):
        return None


# --- A format's folder ----------------------------------------------------------------------------


def _claim(job: _Job, names: Sequence[str]) -> None:
    """Take a format's folder: what the same export wrote as `names` stays, the rest of it goes.

    Raises:
        InputError: it holds files, but not the manifest of an export.
    """
    folder = job.store.root / job.folder
    path = folder / MANIFEST
    if path.is_file():
        try:
            manifest = json.loads(path.read_bytes())
            old = [str(name) for name in manifest["files"]]
            same = manifest["fingerprint"] == job.fingerprint
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--export {job.name}: {path} is damaged ({error!r}); delete the folder"
            ) from error
        job.store.remove_temporary(job.folder)
        kept = set(names) if same else set()
        job.store.remove_files(job.folder, [name for name in old if name not in kept])
    elif folder.exists() and not (folder.is_dir() and all(map(_is_temporary, folder.iterdir()))):
        raise InputError(
            f"--export {job.name}: {folder} was not written by an export (it has no {MANIFEST}); "
            "move it away or choose another --output_dir"
        )
    _write_manifest(job, names, complete=False)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _write_manifest(job: _Job, files: Sequence[str], **facts: Any) -> None:
    job.store.write_json(
        f"{job.folder}/{MANIFEST}",
        {
            "format": job.name,
            "version": EXPORT_VERSION,
            "fingerprint": job.fingerprint,
            "settings": job.config.fingerprint_settings(),
            **facts,
            "files": list(files),
        },
    )


def _complete(
    job: _Job,
    names: Sequence[str],
    extras: Mapping[str, str],
    lines: Sequence[str],
    n_left_out: int = 0,
    n_converted: int = 0,
) -> FormatReport:
    """Write what belongs beside the shards, and that the export is complete."""
    files = [*names, *extras]
    _write_manifest(job, files, complete=False)
    for name, text in extras.items():
        job.store.write_text(f"{job.folder}/{name}", text)
    n_pairs = len(job.table) - n_left_out
    facts = {"pairs": n_pairs, "not_exported": n_left_out, "converted_to_png": n_converted}
    _write_manifest(job, files, complete=True, **facts)
    folder = job.store.root / job.folder
    shown = [name for name in (*files, MANIFEST) if not name.startswith(RECORDS)]
    n_bytes = sum((folder / name).stat().st_size for name in shown)
    head = f"{job.name}: {n_pairs:,} pairs in {job.place()}"
    return FormatReport(
        *(job.name, str(folder), len(shown), n_bytes, n_pairs, n_left_out, n_converted),
        (head, *(f"  {line}" for line in lines)),
    )


def _csv(table: pd.DataFrame, header: bool = True) -> str:
    """Every text quoted."""
    text: str = table.to_csv(
        index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    return text


# --- webdataset -----------------------------------------------------------------------------------


class _TarWriter(_Writer):
    """Image, caption and JSON of every pair, without times and owners."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n_bytes = file, 0

    def add(self, pair: Any, image: _Image) -> None:
        """Add the members of one pair."""
        self._member(f"{pair.name}.{image.extension}", image.data)
        self._member(f"{pair.name}.txt", pair.caption.encode())
        text = json.dumps(_facts(pair, image), ensure_ascii=False, allow_nan=False)
        self._member(f"{pair.name}.json", text.encode())

    def close(self) -> None:
        """Write the end of the archive: two empty blocks, then up to a whole record."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._n_bytes % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> None:
        # By hand, because `tarfile.TarFile` keeps every header until it is closed.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-self._n_bytes % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._n_bytes += len(data)


def _facts(pair: Any, image: _Image) -> dict[str, Any]:
    """The JSON of a pair; `sha256` is that of the image file beside it."""
    facts = {
        "uid": pair.uid or pair.id,
        "id": pair.id,
        "key": pair.key,
        "caption": pair.caption,
        "weight": float(pair.weight),
        "cluster": int(pair.cluster),
        "cell": int(pair.cell),
        "clip_score": _number(pair.clip_score),
        "influence": _number(pair.influence),
        "evaluated": bool(pair.evaluated),
        "group": pair.group,
        "sha256": image.source_sha256,
    }
    if image.converted_from:
        facts["sha256"] = hashlib.sha256(image.data).hexdigest()
        facts["converted_from"] = image.converted_from
        facts["original_sha256"] = image.source_sha256
    return facts


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class _Bucket:
    folder: str
    factor: float
    rows: np.ndarray


def _buckets(job: _Job) -> list[_Bucket]:
    buckets, factors = weight_buckets(job.table["weight"].to_numpy(dtype=np.float64))
    names = _bucket_names(factors.tolist())
    return [
        _Bucket(name, float(factor), np.flatnonzero(buckets == number))
        for number, (name, factor) in enumerate(zip(names, factors, strict=True))
    ]


def _plan_tars(job: _Job) -> list[_Shard]:
    shards = []
    for bucket in _buckets(job):
        parts = _parts(bucket.rows, job.config.export_shard_size)
        digits = _digits(len(parts))
        shards += [
            _Shard(f"{bucket.folder}/{i:0{digits}d}.tar", rows) for i, rows in enumerate(parts)
        ]
    return shards


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Even consecutive parts of at most `size` rows."""
    return np.array_split(rows, -(-len(rows) // size))


def _digits(n: int) -> int:
    return max(DIGITS, len(str(n - 1)))


def _finish_tars(
    job: _Job, shards: list[_Shard], records: dict[str, _Record]
) -> tuple[dict[str, str], list[str]]:
    sizes = {shard.name: records[shard.name].pairs for shard in shards}
    extras = {"sizes.json": _json(sizes)}  # webdataset's convention, here and in every folder
    groups, factors, n_shards = [], [], 0
    for bucket in _buckets(job):
        own = {
            name.partition("/")[2]: n
            for name, n in sizes.items()
            if name.startswith(f"{bucket.folder}/")
        }
        extras[f"{bucket.folder}/sizes.json"] = _json(own)
        if any(own.values()):
            first, last = min(own)[:-4], max(own)[:-4]
            numbers = first if first == last else f"{{{first}..{last}}}"
            groups.append(f"{bucket.folder}/{numbers}.tar")
            factors.append(bucket.factor)
            n_shards += len(own)
    extras[SCRIPT] = open_clip_script(groups, factors, sum(sizes.values()), n_shards)
    lines = [
        f"train open_clip: sh {job.place(SCRIPT)} --model ViT-B-32",
        f"{n_shards:,} shards, of weight {', '.join(f'{factor:.3g}' for factor in factors)}",
    ]
    return extras, lines


def open_clip_script(
    groups: Sequence[str], factors: Sequence[float], n_pairs: int, n_shards: int
) -> str:
    """A shell script that trains open_clip 3.x on the shards beside it, by their weights.

    With several groups, open_clip gives every shard of a group the group's factor and draws
    shards with replacement, with a probability proportional to the factor and whatever their
    size (`expand_urls` and `ResampledShards2` in open_clip_train/data.py, 3.3). It then reads the
    drawn shard from its beginning, every pair once. So a pair is seen in proportion to its
    group's factor, also where the shards differ in size; the more nearly, the more shards an
    epoch holds, since the epoch's end cuts the last ones off. It refuses factors without
    --dataset-resampled. With one group no factor is needed, and an epoch shows every pair once;
    then each worker needs a shard of its own.

    Args:
        groups: shards of one weight each, as brace patterns from the script's folder.
        factors: how often a pair of each group is seen, relative to the others.
        n_pairs: samples an epoch.
        n_shards: all groups together.
    """
    # The folder is found when the script is run, and what open_clip would expand is escaped.
    data = "::".join(f"$here/{group}" for group in groups)
    flags = [f'--train-data "{data}"', "--dataset-type webdataset"]
    flags.append(f"--train-num-samples {n_pairs}")
    if len(groups) > 1:
        shown = "::".join(f"{factor:.6g}" for factor in factors)
        flags += ["--dataset-resampled", f"--train-data-upsampling-factors {shown}"]
        note = "Shards are drawn by their weight; an epoch has as many samples as there are pairs."
    else:
        flags.append(f"--workers {min(MAX_WORKERS, n_shards)}")
        note = "Every GPU times --workers needs a shard of its own."
    lines = [
        "#!/bin/sh",
        "# Trains open_clip 3.x on the curated pairs; further flags are passed on, for example",
        f"#     sh {SCRIPT} --model ViT-B-32 --batch-size 256 --epochs 32",
        f"# {note}",
        "set -e",
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
        "case $here in",
        '  *::*) echo "$here: open_clip takes paths apart at ::, rename it" >&2; exit 2 ;;',
        "esac",
        r"""here=$(printf '%s' "$here" | sed 's/[\\{},]/\\&/g')""",
        'exec "${PYTHON:-python}" -m open_clip_train.main \\',
        *(f"  {flag} \\" for flag in flags),
        '  "$@"',
    ]
    return "\n".join(lines) + "\n"


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


# --- Tables ---------------------------------------------------------------------------------------


def _features() -> Any:
    """The columns of a table as `datasets` knows them."""
    import datasets  # takes seconds

    words = dict.fromkeys(("caption", "id", "key"), "string")
    numbers = {"weight": "float64", "cluster": "int64", "cell": "int64", "clip_score": "float64"}
    columns = {**words, **numbers, "influence": "float64", "group": "string"}
    values = {name: datasets.Value(kind) for name, kind in columns.items()}
    return datasets.Features({"image": datasets.Image(), **values})


class _TableWriter(_Writer):
    """Rows of a table, written some at a time; the schema tells `datasets` what is an image."""

    def __init__(self, schema: Any, sink: Any) -> None:
        self._schema, self._sink = schema, sink
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, pair: Any, image: _Image) -> None:
        """Add one pair."""
        extension = f".{image.extension}" if image.extension else ""
        self._rows.append(
            {
                "image": {"bytes": image.data, "path": f"{pair.name}{extension}"},
                "caption": pair.caption,
                "id": pair.name,
                "key": pair.key,
                "weight": float(pair.weight),
                "cluster": int(pair.cluster),
                "cell": int(pair.cell),
                "clip_score": _number(pair.clip_score),
                "influence": _number(pair.influence),
                "group": pair.group,
            }
        )
        self._bytes += len(image.data)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        try:
            self._flush()
        finally:
            self._sink.close()

    def _flush(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            self._sink.write_table(pa.Table.from_pylist(rows, schema=self._schema))


def _parquet_writer(file: BinaryIO) -> _Writer:
    schema = _features().arrow_schema
    plain = [name for name in schema.names if name != "image"]  # images do not repeat or compress
    sink = pq.ParquetWriter(file, schema, use_dictionary=plain, write_statistics=plain)
    return _TableWriter(schema, sink)


def _arrow_writer(file: BinaryIO) -> _Writer:
    schema = _features().arrow_schema
    return _TableWriter(schema, pa.ipc.new_stream(file, schema))


def _plan_tables(job: _Job, pattern: str) -> list[_Shard]:
    parts = _parts(np.arange(len(job.table)), job.config.export_shard_size)
    digits = _digits(len(parts) + 1)
    total = f"{len(parts):0{digits}d}"
    return [
        _Shard(pattern.format(f"{i:0{digits}d}-of-{total}"), rows) for i, rows in enumerate(parts)
    ]


def _finish_parquet(
    job: _Job, shards: list[_Shard], records: dict[str, _Record]
) -> tuple[dict[str, str], list[str]]:
    n_pairs = sum(record.pairs for record in records.values())
    use = "datasets.load_dataset({}, split='train')"
    card = PARQUET_FRONT_MATTER + _card(job, n_pairs, use)
    return {"README.md": card}, [f"read it: {use.format(_python_path(job))}"]


def _finish_hf(
    job: _Job, shards: list[_Shard], records: dict[str, _Record]
) -> tuple[dict[str, str], list[str]]:
    import datasets

    info = datasets.DatasetInfo(features=_features())
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.name} for shard in shards],
        "_fingerprint": job.fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    facts = {
        "citation": info.citation,
        "description": info.description,
        "features": info.features.to_dict(),
        "homepage": info.homepage,
        "license": info.license,
    }
    n_pairs = sum(record.pairs for record in records.values())
    use = "datasets.load_from_disk({})"
    card = _card(job, n_pairs, use)
    extras = {"dataset_info.json": _json(facts), "state.json": _json(state), "README.md": card}
    return extras, [f"read it: {use.format(_python_path(job))}"]


def _python_path(job: _Job) -> str:
    return repr(str(job.store.root.resolve() / job.folder))


PARQUET_FRONT_MATTER = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

"""  # tells `datasets` and the Hub where the rows are


def _card(job: _Job, n_pairs: int, use: str) -> str:
    """The data set card."""
    facts = {"pairs": f"{n_pairs:,}", **job.about}
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())
    return f"""# Curated image-text pairs

A training set chosen by InfluenceSpace. The images are the original files.

```python
import datasets

table = {use.format("'path/to/this/folder'")}
```

| | |
|---|---|
{rows}

| column | meaning |
|---|---|
| `image`, `caption` | the pair |
| `id` | 128 bits of the SHA-256 of image file and caption, 32 hex digits |
| `key` | name of the image in the data set it comes from |
| `weight` | how often the pair should be seen, mean one |
| `cluster`, `cell` | its topic, and the part of it in which pairs agree alike |
| `clip_score` | cosine of image and caption |
| `influence` | change of the validation loss without the pair; positive helps; may be missing |
| `group` | ground truth of synthetic scenes, else empty |

Images and captions remain under the licence of the data set they come from.
"""


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


# --- Without images -------------------------------------------------------------------------------


def _export_datacomp(job: _Job) -> FormatReport:
    """The kept names, 128 bits each, as DataComp's resharder reads them.

    The resharder writes a pair as often as its name stands in the file, so a name that two pairs
    share stands there once.
    """
    has_uid = job.table["uid"] != ""
    names = job.table["uid"].where(has_uid, job.table["id"]).unique()
    halves = [(int(name[:16], 16), int(name[16:], 16)) for name in names]
    subset = np.sort(np.array(halves, dtype=np.dtype("u8,u8")))
    which = "the data set's own names" if has_uid.all() else "ids, as in the exported JSON"
    if has_uid.any() and not has_uid.all():
        which = "the data set's own names where there are any, else ids"
        logger.warning(
            "--export datacomp: %d of %d pairs have no uid of their own; their ids stand in place",
            *(int((~has_uid).sum()), len(has_uid)),
        )
    _claim(job, ["subset.npy"])
    job.store.write_npy(f"{job.folder}/subset.npy", subset)
    lines = [
        f"{len(subset):,} names: {which}",
        f"use it: python resharder.py --subset-file {job.place('subset.npy')}",
    ]
    return _complete(job, ["subset.npy"], {}, lines)


def _export_list(job: _Job) -> FormatReport:
    """`curated.csv`, by position."""
    _claim(job, ["curated.csv"])
    table = job.table.sort_values("position")[["name", "uid", "key", "caption", "weight"]]
    table = table.rename(columns={"name": "id"})
    with job.store.writing(f"{job.folder}/curated.csv") as file:
        for start in range(0, len(table), LIST_ROWS):
            rows = table.iloc[start : start + LIST_ROWS]
            file.write(_csv(rows, header=start == 0).encode())
    return _complete(job, ["curated.csv"], {}, ["id, uid, key, caption and weight of every pair"])


_WITHOUT_IMAGES: dict[str, Callable[[_Job], FormatReport]] = {
    "datacomp": _export_datacomp,
    "list": _export_list,
}
_IMAGE_FORMATS = {
    "webdataset": _ImageFormat(_plan_tars, _TarWriter, _for_open_clip, _finish_tars),
    "parquet": _ImageFormat(
        partial(_plan_tables, pattern="data/train-{}.parquet"),
        _parquet_writer,
        _as_it_is,
        _finish_parquet,
    ),
    "hf": _ImageFormat(
        partial(_plan_tables, pattern="data-{}.arrow"), _arrow_writer, _as_it_is, _finish_hf
    ),
}
