"""Pairs of data sets of the `datasets` library: on disk, in the Hub's cache, streamed from it."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from artifacts.settings import InputError
from sources.arrow import cell_values
from sources.base import (
    OUTSIDE_FOLDER,
    SEVERAL_IMAGES,
    SPLIT_NAMES,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.captions import TEXT_FIELDS, captions_in
from sources.columns import SPLIT_COLUMN, Columns, find_columns, image_column
from sources.image_files import from_base64
from sources.official import column_notes
from sources.online import hub_answers
from sources.paths import (
    current_snapshot,
    leads_out,
    list_files,
    read_file,
    real_path,
    split_from_path,
    storable_name,
)
from sources.splits import IndexedSource, StreamSource, digest, official_split

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A stream does not tell how long it is, so the positions of its splits start this far apart.
STREAM_STRIDE = 10**12
HUB_PREFIX = "hf://datasets/"
TABLE_SUFFIXES = (".arrow", ".parquet", ".json")  # of what `datasets` itself opens
N_LOOKED_AT = 1000  # rows of a stream that tell which splits a column names


def open_hf(name: str, config: DataConfig, rng: np.random.Generator) -> PairSource:
    """A data set of `datasets`: a local folder, a stream from the Hub, or the Hub's local cache.

    Raises:
        InputError: it cannot be had, or lacks a column.
    """
    repo = config.hf_dataset
    if Path(repo).is_dir():
        folder, snapshot_notes = current_snapshot(Path(repo))
        tables, version = _local_tables(folder), sorted(list_files(folder).items())
        source = _table_source(name, f"folder {repo}", tables, version, folder, config, rng)
        source.notes = (*snapshot_notes, *source.notes)
        return source
    if hub_answers(repo, "dataset"):
        return _hub_stream(name, config)
    cached = _cached_tables(repo)
    if cached is None:
        local = "--dataset coco --data_dir DIR or --dataset folder --data_dir DIR"
        raise InputError(
            f"--hf_dataset {repo} is no folder, not in the local cache, and the Hub does not offer "
            f"it or does not answer; check the name and the network, or use local data: {local}"
        )
    cache_files = [
        (part, Path(file["filename"]).name, Path(file["filename"]).stat().st_size)
        for part, table in cached.items()
        for file in table.cache_files
    ]
    origin = f"{repo}, from the local cache"
    return _table_source(name, origin, cached, cache_files, None, config, rng)


def _local_tables(folder: Path) -> Mapping[str, Any]:
    """The tables of a save_to_disk folder or of a folder of parquet files."""
    datasets = _import_datasets()
    for name in list_files(folder):
        if name.endswith(TABLE_SUFFIXES) and leads_out(folder, name):
            raise InputError(
                f"--hf_dataset {folder}: {storable_name(name)} leads out of the folder; put a copy "
                "in its place"
            )
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = path.relative_to(folder).as_posix()
        files.setdefault(split_from_path(name) or "train", []).append(real_path(folder, name))
    try:
        if files:
            loaded = datasets.load_dataset("parquet", data_files=files)
        else:
            loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged file raises whatever Arrow raises
        problem = str(error).partition("\n")[0]
        what = "cannot be read as" if files else "is no save_to_disk folder or folder of"
        remedy = f"; --dataset parquet --data_dir {folder} tells more" if files else ""
        raise InputError(
            f"--hf_dataset {folder} {what} parquet files: {problem}{remedy}"
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _cached_tables(repo: str) -> Mapping[str, Any] | None:
    """A Hub data set that was downloaded before, without asking the Hub."""
    _import_datasets()
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = Cache(dataset_name=repo.split("/")[-1], repo_id=repo, version="auto", hash="auto")
        tables: Mapping[str, Any] = builder.as_dataset()
    except Exception as error:  # not cached, several configurations, or an incomplete download
        logger.debug("no cached %s: %s", repo, error)
        return None
    return tables


def _table_source(
    name: str,
    origin: str,
    tables: Mapping[str, Any],
    version: object,
    folder: Path | None,
    config: DataConfig,
    rng: np.random.Generator,
) -> IndexedSource:
    """Pairs of `datasets.Dataset` tables, rows of the same id taken together.

    `version` stands for the images in the fingerprint: it changes when the files do. Images that
    a cell names by their path are opened in `folder` and in the local caches alone.
    """
    roots = _image_roots(folder)
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    n_pairs, seen, counts = 0, [], _SplitCounts()
    chosen: dict[str, None] = {}
    for part, table in _by_official_split(tables).items():
        taken = _check_columns(table.column_names, config)
        images = _undecoded(table.select_columns([taken.image]).with_format(None), taken.image)
        texts = table.select_columns(taken.texts()).with_format("arrow")[:]
        columns = {name: cell_values(texts.column(name)) for name in texts.column_names}
        keys = columns[taken.id] if taken.id is not None else range(len(table))
        captions: dict[Hashable, list[Caption]] = {}
        first_rows: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            first_rows.setdefault(key, row)
            for text in taken.captions_of({name: cells[row] for name, cells in columns.items()}):
                captions.setdefault(key, []).append(Caption(n_pairs, text, row=row))
                n_pairs += 1
        named = _named_splits(table, taken.split, columns)
        of_part = _split_of_part(part)
        for (key, row), texts_of_image in zip(first_rows.items(), captions.values(), strict=True):
            read = partial(_row_bytes, images, row, taken.image, roots)
            record = ImageRecord(f"{part}/{key}", read, tuple(texts_of_image), shard=part)
            official[counts.take(named[row]) or of_part].append(record)
        seen.append([part, columns])
        chosen[taken.note()] = None
        if part not in SPLITS:
            chosen[f"part {storable_name(part)}, read as {of_part}"] = None
    n_images = sum(map(len, official.values()))
    description = f"{origin}: {n_images:,} images, {n_pairs:,} captions"
    image_column = config.image_column if len(chosen) != 1 else taken.image
    fingerprint = digest(name, image_column, seen, version)
    return IndexedSource(
        *(name, description, fingerprint, official, config.limits(), rng),
        notes=[*chosen, *counts.notes(taken.split)],
    )


class _SplitCounts:
    """What a column of splits names, row by row."""

    def __init__(self) -> None:
        self._named: Counter[str | None] = Counter()
        self._unknown: Counter[str] = Counter()

    def take(self, name: str | None) -> str | None:
        """The split that a row names, if any; counted."""
        split = official_split(name) if name else None
        self._named[split] += 1
        if name and split is None:
            self._unknown[name] += 1
        return split

    def notes(self, column: str | None) -> list[str]:
        """What was found in a column of this name, a phrase each."""
        return column_notes(column or SPLIT_COLUMN, self._named, self._unknown, "images")


def _named_splits(
    table: Any, column: str | None, columns: Mapping[str, Sequence[Any]]
) -> Sequence[str | None]:
    """What the column of splits holds, numbers of classes as their names; None where nothing."""
    if column is None:
        return [None] * len(table)
    names = getattr(table.features[column], "names", None)
    cells = columns[column]
    if names is not None:
        cells = [names[cell] if isinstance(cell, int) and cell >= 0 else None for cell in cells]
    return [cell if isinstance(cell, str) else None for cell in cells]


def _undecoded(table: Any, column: str) -> Any:
    """A table whose images are given as bytes or path; lists of one image stay lists."""
    datasets = _import_datasets()
    image: Any = datasets.Image(decode=False)
    if isinstance(table.features[column], datasets.List | datasets.LargeList | list):
        image = datasets.List(image)
    return table.cast_column(column, image)


def _hub_stream(name: str, config: DataConfig) -> StreamSource:
    datasets = _import_datasets()
    repo = config.hf_dataset
    try:
        builder = datasets.load_dataset_builder(repo)
        parts = _by_official_split(builder.as_streaming_dataset())
        names = {part: rows.column_names or list(next(iter(rows))) for part, rows in parts.items()}
    except Exception as error:  # many kinds: no access, several configurations, an unknown format
        problem = str(error).partition("\n")[0]
        raise InputError(f"--hf_dataset {repo} cannot be streamed: {problem}") from error
    streams: dict[str, list[Iterator[ImageRecord]]] = {}
    notes: dict[str, None] = {}
    for i, (part, rows) in enumerate(parts.items()):
        taken = _check_columns(names[part], config)
        notes[taken.note()] = None
        rows = rows.select_columns([*taken.texts(), taken.image])
        rows = rows.cast_column(taken.image, datasets.Image(decode=False))
        of_part = [_split_of_part(part)]
        found = of_part if taken.split is None else _splits_at_the_start(rows, taken.split, part)
        for split in found:
            of_split = None if taken.split is None else split
            records = _stream_records(rows, taken, part, i * STREAM_STRIDE, of_split)
            streams.setdefault(split, []).append(records)
    sizes = builder.info.splits or {}
    n_train = sizes["train"].num_examples if "train" in sizes else None
    fingerprint = digest(name, repo, builder.hash, names, config.id_column)
    description = f"{repo}, streamed from the Hub"
    joined = {split: chain.from_iterable(records) for split, records in streams.items()}
    return StreamSource(
        name,
        description,
        fingerprint,
        joined,
        n_train or None,
        limits=config.limits(),
        notes=[*notes],
    )


def _splits_at_the_start(rows: Any, column: str, part: str) -> list[str]:
    """The splits that the first rows of a stream name: nobody knows those of a whole stream.

    Rows of a split that none of the first rows names are not read, and never trained on.
    """
    first = (_split_of(row, column, part) for row in islice(rows, N_LOOKED_AT))
    found = set(first) or {"train"}
    return [split for split in SPLITS if split in found]


def _split_of(row: Mapping[str, Any], column: str, part: str) -> str:
    """The split that a row of a stream names, else that of its part."""
    name = row[column]
    return (official_split(name) if isinstance(name, str) else None) or _split_of_part(part)


def _stream_records(
    rows: Iterable[Mapping[str, Any]],
    taken: _Taken,
    part: str,
    first_position: int,
    split: str | None = None,
) -> Iterator[ImageRecord]:
    """Records of a stream of rows, consecutive rows of the same id taken together.

    Args:
        rows: of the stream.
        taken: columns.
        part: the stream's name.
        first_position: of its captions.
        split: the one whose rows are taken, where a column names it; None takes all.

    Raises:
        InputError: the stream breaks off.
    """
    position, roots = first_position, _image_roots(None)
    try:
        by_id = groupby(enumerate(rows), key=lambda r: r[0] if taken.id is None else r[1][taken.id])
        for key, group in by_id:
            members = list(group)
            texts = [(number, text) for number, row in members for text in taken.captions_of(row)]
            captions = tuple(
                Caption(position + i, text, row=number) for i, (number, text) in enumerate(texts)
            )
            position += len(captions)
            first = members[0][1]
            if split is not None and _split_of(first, str(taken.split), part) != split:
                continue
            read = partial(_cell_bytes, first[taken.image], roots, HUB_PREFIX)
            yield ImageRecord(f"{part}/{key}", read, captions, shard=part)
    except InputError:
        raise
    except Exception as error:  # whatever the network or a damaged shard raises
        raise InputError(f"--hf_dataset: the stream of {part} broke off: {error}") from error


def _by_official_split(parts: Mapping[str, T]) -> dict[str, T]:
    """Parts under the names in `SPLITS` where they mean one, once each; others under their own."""
    named = {
        split: next(name for name in names if name in parts)
        for split, names in SPLIT_NAMES.items()
        if not parts.keys().isdisjoint(names)
    }
    others = {name: part for name, part in parts.items() if name not in named.values()}
    return {split: parts[name] for split, name in named.items()} | others


def _split_of_part(part: str) -> str:
    """The split that a part is read as."""
    return part if part in SPLITS else split_from_path(part) or "train"


@dataclass(frozen=True)
class _Taken:
    """The columns of a table that are read.

    Attributes:
        columns: of images, captions and splits.
        id: tells which rows show the same image; None where there is none.
    """

    columns: Columns
    id: str | None

    @property
    def image(self) -> str:
        """The column of images."""
        return self.columns.image

    @property
    def split(self) -> str | None:
        """The column of splits, if there is one."""
        return self.columns.split

    def texts(self) -> list[str]:
        """All columns but that of images, captions first."""
        others = [name for name in (self.id, self.split) if name is not None]
        return [*self.columns.captions, *others]

    def note(self) -> str:
        """What was taken, in a phrase."""
        return self.columns.note()

    def captions_of(self, row: Mapping[str, Any]) -> list[str | None]:
        """The captions of a row; one without any has one missing caption.

        Raises:
            InputError: a column holds something else.
        """
        names = self.columns.captions
        cells = [(name, row[name]) for name in names]
        if len(names) > 1:
            cells = [cell for cell in cells if cell[1] is not None and cell[1] != ""]
        for name, cell in cells:
            values = cell if isinstance(cell, list) else [cell]
            if other := [value for value in values if not _may_hold_text(value)]:
                kind = type(other[0]).__name__
                raise InputError(f"--caption_column {name} holds {kind}, not text")
        return [text for _, cell in cells for text in captions_in(cell)] or [None]


def _may_hold_text(value: object) -> bool:
    """Whether a value is a text, an object with a place for one, or nothing."""
    if isinstance(value, Mapping):
        return any(str(name).casefold() in TEXT_FIELDS for name in value)
    return isinstance(value, str | None)


def _check_columns(names: Sequence[str], config: DataConfig) -> _Taken:
    """The columns to read.

    Raises:
        InputError: there are no images or captions by their names.
    """
    columns = find_columns(names, config)
    if columns is None:
        lacking = "caption_column" if image_column(names, config) else "image_column"
        raise InputError(
            f"--{lacking} {getattr(config, lacking)}: no such column in {config.hf_dataset}; "
            f"there are {', '.join(names)}"
        )
    return _Taken(columns, config.id_column if config.id_column in names else None)


def _image_roots(folder: Path | None) -> tuple[Path, ...]:
    """Where images may lie that a cell names by their path: in the data set, in the caches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    settings = _import_datasets().config
    caches = (settings.HF_DATASETS_CACHE, settings.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return (*([folder] if folder else []), *map(Path, caches))


def _row_bytes(table: Any, row: int, column: str, roots: Sequence[Path]) -> bytes:
    return _cell_bytes(table[row][column], roots)


def _cell_bytes(cell: Any, roots: Sequence[Path], remote: str | None = None) -> bytes:
    """The bytes of a cell of `datasets.Image(decode=False)`.

    Args:
        cell: of a table.
        roots: the folders that a path may lead to; a relative one starts from the first.
        remote: how addresses begin that may be opened too; None: no address may.

    Raises:
        UnusableImage: its path leads elsewhere, or it holds several images.
        OSError: it is empty, or there is no such file.
    """
    if isinstance(cell, list):
        if len(cell) > 1:
            raise UnusableImage(SEVERAL_IMAGES, f"{len(cell):,} of them")
        cell = cell[0] if cell else None
    if not cell or (cell["bytes"] is None and not cell["path"]):
        raise FileNotFoundError("empty cell")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    path = str(cell["path"])
    if (content := from_base64(path.encode("utf-8", "surrogateescape"))) is not None:
        return content
    if remote is not None and path.rpartition("::")[2].startswith(remote):
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:
            return bytes(file.read())
    if "://" in path:
        raise UnusableImage(OUTSIDE_FOLDER, storable_name(path))
    for root in roots:
        try:
            return read_file(root, os.path.abspath(path))
        except UnusableImage as error:
            if error.reason != OUTSIDE_FOLDER:
                raise
    return read_file(roots[0], path)


def _import_datasets() -> Any:
    """The `datasets` library, which takes seconds to import, quiet where there is no terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
