"""One format's export, the folder that it owns, and the report of what lies there."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from artifacts.settings import InputError
from artifacts.store import Store
from engine.base import Engine, Setup
from sources.base import PairSource

EXPORT_VERSION = 1  # raise when what is written changes: earlier exports are then written anew
FOLDER = "curated"
MANIFEST = "export.json"
RECORDS = ".shards"  # a record of every whole shard, for the run that goes on


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
class Workers:
    """Whoever writes shards side by side.

    Attributes:
        engine: what they work on.
        setup: opens the data set in each.
    """

    engine: Engine
    setup: Setup[PairSource]


@dataclass(frozen=True)
class Job:
    """One format's export.

    Attributes:
        name: of the format.
        table: a row a pair, those of one image together, with the columns that `export_curated`
            takes and `name`, the id made unique.
        source: opens the data set anew.
        store: the run's folder.
        shard_size: pairs a shard, at most.
        settings: those that shape the files, for the manifest.
        fingerprint: of this format; stands for everything that it depends on.
        about: facts for the data set card, in order.
        n_workers: threads that read images; 0 reads in the main one.
        workers: who else can write shards; None: nobody.
    """

    name: str
    table: pd.DataFrame
    source: Callable[[], PairSource]
    store: Store
    shard_size: int
    settings: Mapping[str, Any]
    fingerprint: str
    about: Mapping[str, str]
    n_workers: int
    workers: Workers | None = None

    @property
    def folder(self) -> str:
        """From the store's root."""
        return f"{FOLDER}/{self.name}"

    def place(self, name: str = "") -> str:
        """A file's path for people, quoted for a shell."""
        return shlex.quote(str(self.store.root.resolve() / self.folder / name))


def claim(job: Job, names: Sequence[str]) -> None:
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
                f"--export {job.name}: {path} is damaged ({error!r}); delete {folder} and run again"
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


def _write_manifest(job: Job, files: Sequence[str], **facts: Any) -> None:
    job.store.write_json(
        f"{job.folder}/{MANIFEST}",
        {
            "format": job.name,
            "version": EXPORT_VERSION,
            "fingerprint": job.fingerprint,
            "settings": dict(job.settings),
            **facts,
            "files": list(files),
        },
    )


def complete(
    job: Job,
    names: Sequence[str],
    extras: Mapping[str, str],
    lines: Sequence[str],
    n_left_out: int = 0,
    n_converted: int = 0,
) -> FormatReport:
    """Write what belongs beside the files of the pairs, and that the export is complete.

    Args:
        job: whose folder was claimed.
        names: the files that hold the pairs, all of them written.
        extras: text by the name of its file.
        lines: for people, see `FormatReport`.
        n_left_out: pairs that are in no file.
        n_converted: pairs whose image was converted.
    """
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


def csv_text(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV, every text quoted."""
    text: str = table.to_csv(
        index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    return text


def json_text(content: Any) -> str:
    """JSON that a person can read, its keys in the order given."""
    return json.dumps(content, indent=2) + "\n"
