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

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from artifacts.settings import InputError, Settings, setting
from artifacts.store import Store
from exporting.folder import (
    EXPORT_VERSION,
    FOLDER,
    MANIFEST,
    FormatReport,
    Job,
    Workers,
    claim,
    complete,
    csv_text,
)
from exporting.shards import ShardFormat, export_in_shards
from exporting.tables import HF, PARQUET
from exporting.webdataset import WEBDATASET
from sources.base import PairSource
from sources.paths import unique_names
from sources.splits import digest

logger = logging.getLogger(__name__)
LIST_ROWS = 10_000  # of the list that are put into words at once
HARDLY = 0.05  # share of the largest weight below which a pair hardly counts


class Format(NamedTuple):
    """A way to write the curated set: all that the rest of the project knows of it.

    Attributes:
        row_bytes: what a pair takes beside its image, caption and key, for the expected size.
        shards: how images are written; None of a format without images.
        write: writes a format without images.
        has_text: whether captions and keys are in it.
    """

    row_bytes: int
    shards: ShardFormat | None = None
    write: Callable[[Job], FormatReport] | None = None
    has_text: bool = True


# Every format, in the order in which they are listed; one is added here and nowhere else.
FORMATS: dict[str, Format] = {
    # Three headers, padding to 512 bytes, what is known of the pair.
    "webdataset": Format(2900, WEBDATASET),
    "datacomp": Format(16, write=lambda job: _export_datacomp(job), has_text=False),
    "parquet": Format(80, PARQUET),
    "hf": Format(150, HF),
    "list": Format(82, write=lambda job: _export_list(job)),
}
NEED_IMAGES = tuple(name for name, kind in FORMATS.items() if kind.shards is not None)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """How the curated set is written for trainers."""

    export: tuple[str, ...] = setting(
        (),
        "also write the curated set, images included, to <output_dir>/curated",
        choices=tuple(FORMATS),
        affects_result=False,
    )
    export_shard_size: int = setting(10_000, "pairs a shard of the export, at most", at_least=1)


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
    workers: Workers | None = None,
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
        workers: who writes several shards side by side, where any image can be reached at any time.

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
        name: digest(EXPORT_VERSION, name, fingerprint, config.fingerprint_settings())
        for name in config.export
    }
    reports = {}
    for name in sorted(config.export, key=lambda name: name in NEED_IMAGES):
        job = Job(
            *(name, table, source, store, config.export_shard_size),
            *(config.fingerprint_settings(), digests[name], about, n_workers, workers),
        )
        report = reports[name] = _export(job)
        logger.info(
            *("export     %s: %d pairs, %d files, %d bytes in %s", name, report.pairs),
            *(report.files, report.bytes, report.folder),
        )
    return ExportReport(tuple(reports[name] for name in config.export))


def warn_of_outdated(store: Store, config: ExportConfig, fingerprint: str) -> None:
    """Say which exports of another curation lie in the folder and are not written anew."""
    old = outdated_exports(store, config, fingerprint)
    if old:
        logger.warning(
            "%s holds exports of another curation (%s); add --export %s to write them anew",
            store.root / "curated",
            " and ".join(old),
            ",".join(old),
        )


def outdated_exports(store: Store, config: ExportConfig, fingerprint: str) -> list[str]:
    """The formats that lie in the run's folder from another curation and are not written now."""
    found = []
    for name in FORMATS:
        path = store.root / FOLDER / name / MANIFEST
        if name in config.export or not path.is_file():
            continue
        try:
            manifest = json.loads(path.read_bytes())
            own = digest(EXPORT_VERSION, name, fingerprint, manifest["settings"])
            is_old = manifest["fingerprint"] != own
        except (OSError, ValueError, KeyError, TypeError):
            is_old = True
        if is_old:
            found.append(name)
    return found


def _in_reading_order(curated: pd.DataFrame) -> pd.DataFrame:
    """The pairs by position, those of one image beside its first, each with a name of its own.

    The column `name` is the id; a second pair of the same id gets -2, a third -3.
    """
    first = curated.groupby("key", sort=False)["position"].transform("min")
    table = curated.iloc[np.lexsort((curated["position"], first))].reset_index(drop=True)
    named: pd.DataFrame = table.assign(name=unique_names(table["id"], mark="-"))
    return named


def _export(job: Job) -> FormatReport:
    """One format, as the job's name says.

    Raises:
        InputError: see `export_curated`.
    """
    kind = FORMATS[job.name]
    if kind.shards is not None:
        return export_in_shards(job, kind.shards)
    assert kind.write is not None, f"{job.name} is written by nothing"
    return kind.write(job)


# --- Without images -------------------------------------------------------------------------------


def _export_datacomp(job: Job) -> FormatReport:
    """The kept names, 128 bits each, as DataComp's resharder reads them.

    The resharder writes a pair as often as its name stands in the file, so a name that two pairs
    share stands there once.
    """
    has_uid = job.table["uid"] != ""
    names = _uids(job.table).unique()
    halves = [(int(name[:16], 16), int(name[16:], 16)) for name in names]
    subset = np.sort(np.array(halves, dtype=np.dtype("u8,u8")))
    which = "the data set's own names" if has_uid.all() else "ids, as in the exported JSON"
    if has_uid.any() and not has_uid.all():
        which = "the data set's own names where there are any, else ids"
        logger.warning(
            "--export datacomp: %d of %d pairs have no uid of their own; their ids stand in place",
            *(int((~has_uid).sum()), len(has_uid)),
        )
    weights = job.table["weight"]
    if n_low := int((weights < HARDLY * weights.max()).sum()):
        logger.warning(
            "--export datacomp: subset.npy has no weights; %d pairs that hardly count would count"
            " like others there; --target_size_ratio auto keeps few that look faulty",
            n_low,
        )
    claim(job, ["subset.npy"])
    job.store.write_npy(f"{job.folder}/subset.npy", subset)
    lines = [
        f"{len(subset):,} names: {which}",
        f"use it: python resharder.py --subset-file {job.place('subset.npy')}",
    ]
    return complete(job, ["subset.npy"], {}, lines)


def _uids(table: pd.DataFrame) -> pd.Series[str]:
    """The data set's own name of every pair, or its id where there is none, as in the JSON."""
    return table["uid"].where(table["uid"] != "", table["id"])


def _export_list(job: Job) -> FormatReport:
    """`curated.csv`, by position."""
    claim(job, ["curated.csv"])
    table = job.table.assign(uid=_uids(job.table)).sort_values("position")
    table = table[["name", "uid", "key", "caption", "weight"]]
    table = table.rename(columns={"name": "id"})
    with job.store.writing(f"{job.folder}/curated.csv") as file:
        for start in range(0, len(table), LIST_ROWS):
            rows = table.iloc[start : start + LIST_ROWS]
            file.write(csv_text(rows, header=start == 0).encode())
    return complete(job, ["curated.csv"], {}, ["id, uid, key, caption and weight of every pair"])
