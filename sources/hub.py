"""Pairs of data sets of the `datasets` library: on disk, in the Hub's cache, streamed from it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from artifacts.settings import InputError
from sources.arrow import cell_values
from sources.base import (
    OUTSIDE_FOLDER,
    SPLIT_NAMES,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
)
from sources.online import hub_answers
from sources.paths import list_files, read_file, split_from_path, storable_name
from sources.splits import IndexedSource, StreamSource, digest

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A stream does not tell how long it is, so the positions of its splits start this far apart.
STREAM_STRIDE = 10**12
HUB_PREFIX = "hf://datasets/"


def open_hf(name: str, config: DataConfig, rng: np.random.Generator) -> PairSource:
    """A data set of `datasets`: a local folder, a stream from the Hub, or the Hub's local cache.

    Raises:
        InputError: it cannot be had, or lacks a column.
    """
    repo = config.hf_dataset
    if Path(repo).is_dir():
        folder = Path(repo)
        tables, version = _local_tables(folder), sorted(list_files(folder).items())
        return _table_source(name, f"folder {repo}", tables, version, folder, config, rng)
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
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        split = split_from_path(path.relative_to(folder).as_posix()) or "train"
        files.setdefault(split, []).append(str(path))
    try:
        if files:
            loaded = datasets.load_dataset("parquet", data_files=files)
        else:
            loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged file raises whatever Arrow raises
        problem = str(error).partition("\n")[0]
        raise InputError(
            f"--hf_dataset {folder} is no save_to_disk folder or folder of parquet files: {problem}"
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
    datasets, roots = _import_datasets(), _image_roots(folder)
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    n_pairs, seen = 0, []
    for part, table in _by_official_split(tables).items():
        caption_column, *ids, image_column = _check_columns(table.column_names, config)
        images = table.select_columns([image_column]).with_format(None)
        images = images.cast_column(image_column, datasets.Image(decode=False))
        texts = table.select_columns([caption_column, *ids]).with_format("arrow")[:]
        columns = {name: cell_values(texts.column(name)) for name in texts.column_names}
        keys = columns[ids[0]] if ids else range(len(table))
        captions: dict[Hashable, list[Caption]] = {}
        first_rows: dict[Hashable, int] = {}
        for row, (key, cell) in enumerate(zip(keys, columns[caption_column], strict=True)):
            first_rows.setdefault(key, row)
            for text in _captions(cell, caption_column):
                captions.setdefault(key, []).append(Caption(n_pairs, text, row=row))
                n_pairs += 1
        official[part if part in SPLITS else "train"] += [
            ImageRecord(
                f"{part}/{key}",
                partial(_row_bytes, images, row, image_column, roots),
                tuple(c),
                shard=part,
            )
            for (key, row), c in zip(first_rows.items(), captions.values(), strict=True)
        ]
        seen.append([part, columns])
    n_images = sum(map(len, official.values()))
    description = f"{origin}: {n_images:,} images, {n_pairs:,} captions"
    fingerprint = digest(name, config.image_column, seen, version)
    return IndexedSource(name, description, fingerprint, official, config.limits(), rng)


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
    streams = {}
    for i, (part, rows) in enumerate(parts.items()):
        columns = _check_columns(names[part], config)
        rows = rows.select_columns(columns)
        rows = rows.cast_column(config.image_column, datasets.Image(decode=False))
        streams[part] = _stream_records(rows, columns, part, i * STREAM_STRIDE)
    sizes = builder.info.splits or {}
    n_train = sizes["train"].num_examples if "train" in sizes else None
    fingerprint = digest(name, repo, builder.hash, names, config.id_column)
    description = f"{repo}, streamed from the Hub"
    return StreamSource(name, description, fingerprint, streams, n_train or None)


def _stream_records(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], part: str, first_position: int
) -> Iterator[ImageRecord]:
    """Records of a stream of rows, consecutive rows of the same id taken together.

    Raises:
        InputError: the stream breaks off.
    """
    caption_column, *ids, image_column = columns
    position, roots = first_position, _image_roots(None)
    try:
        for key, group in groupby(enumerate(rows), key=lambda r: r[1][ids[0]] if ids else r[0]):
            members = list(group)
            texts = [
                (number, text)
                for number, row in members
                for text in _captions(row[caption_column], caption_column)
            ]
            captions = tuple(
                Caption(position + i, text, row=number) for i, (number, text) in enumerate(texts)
            )
            position += len(captions)
            read = partial(_cell_bytes, members[0][1][image_column], roots, HUB_PREFIX)
            yield ImageRecord(f"{part}/{key}", read, captions, shard=part)
    except InputError:
        raise
    except Exception as error:  # whatever the network or a damaged shard raises
        raise InputError(f"--hf_dataset: the stream of {part} broke off: {error}") from error


def _by_official_split(parts: Mapping[str, T]) -> dict[str, T]:
    """Parts under the names in `SPLITS`; under their own where none of them is known."""
    named = {
        split: parts[name]
        for split, names in SPLIT_NAMES.items()
        for name in reversed(names)  # the first name is put in last and stays
        if name in parts
    }
    return named or dict(parts)


def _check_columns(columns: Sequence[str], config: DataConfig) -> list[str]:
    """The columns to read, caption first, image last, id between where it exists."""
    for flag in ("image_column", "caption_column"):
        if getattr(config, flag) not in columns:
            raise InputError(
                f"--{flag} {getattr(config, flag)}: no such column in {config.hf_dataset}; "
                f"there are {', '.join(columns)}"
            )
    ids = [config.id_column] if config.id_column in columns else []
    return [config.caption_column, *ids, config.image_column]


def _captions(value: object, column: str) -> list[str | None]:
    """The captions of one table cell; a cell without any is one missing caption."""
    values: list[Any] = (value or [None]) if isinstance(value, list) else [value]
    if any(not isinstance(text, str | None) for text in values):
        raise InputError(f"--caption_column {column} holds {type(values[0]).__name__}, not text")
    return list(values)


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
        UnusableImage: its path leads elsewhere.
        OSError: it is empty, or there is no such file.
    """
    if not cell or (cell["bytes"] is None and not cell["path"]):
        raise FileNotFoundError("empty cell")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    path = str(cell["path"])
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
