"""Where pairs come from: a folder, COCO on disk, `datasets` and its Hub, or drawn scenes.

`open_source` makes the `data.PairSource` that the settings ask for. This module owns how each kind
of data is found and understood, which image is in which split, and the order in which candidates
are tried. Splits are by image: test keeps every caption of an image, validation one, and training
gives every image one caption before any image gives a second.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import posixpath
import re
import stat
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

import synthetic
from data import (
    OUTSIDE_FOLDER,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    PairSource,
    UnusableImage,
    hub_answers,
)
from settings import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
CARVED_SHARE = 0.2  # the most of the training images that a missing split may take

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FILE_COLUMNS = ("image", "file", "filename", "file_name", "image_name", "filepath", "path")
CAPTION_COLUMNS = ("caption", "title", "text", "comment", "description")
CAPTION_FILES = ("captions.txt", "captions.csv", "captions.tsv", "results.csv")
SPLIT_FILE = "splits.csv"
FOLDER_LAYOUTS = (
    "captions.txt or a CSV with a header of file and caption, metadata.csv or metadata.jsonl "
    "with file_name and caption, or a name.txt beside each name.jpg"
)

# A stream does not tell how long it is, so the positions of its splits start this far apart.
STREAM_STRIDE = 10**12

SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: no COCO could be had, so this run uses drawn scenes and says nothing about "
    "photographs. Give --data_dir a folder with annotations/ and train2017/, or use "
    "--dataset folder with images and captions of your own."
)


def open_source(config: DataConfig, *, rng: np.random.Generator) -> PairSource:
    """The source that the settings ask for.

    Args:
        config: `dataset` chooses; an explicit choice never falls back.
        rng: decides carved splits, the order of candidates and the synthetic scenes.

    Raises:
        InputError: the data cannot be had or understood.
    """
    if config.dataset == "folder":
        return open_folder(config, rng)
    if config.dataset == "hf":
        return open_hf("hf", config, rng)
    if config.dataset == "synthetic":
        return open_synthetic(config, rng)
    if config.data_dir is not None:
        return open_coco_files(config.data_dir, config, rng)
    try:
        return open_hf("coco", config, rng)
    except InputError as error:
        if config.dataset == "coco":
            raise
        logger.warning("%s (%s)", SYNTHETIC_WARNING, error)
        return open_synthetic(config, rng)


# --- Two kinds of source --------------------------------------------------------------------------


class IndexedSource(PairSource):
    """Pairs of which every one can be reached at any time."""

    def __init__(
        self,
        name: str,
        description: str,
        fingerprint: str,
        official: Mapping[str, Sequence[ImageRecord]],
        limits: Mapping[str, int],
        rng: np.random.Generator,
    ) -> None:
        splits, note = complete_splits(official, limits, rng)
        super().__init__(name, f"{description}; {note}", fingerprint)
        self._splits, self._limits = splits, limits
        self._seeds = {split: int(rng.integers(2**63)) for split in SPLITS}
        self._by_key = {image.key: image for image in chain.from_iterable(splits.values())}

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split; see `order_candidates`. Every call gives the same order."""
        rng = np.random.default_rng(self._seeds[split])
        return order_candidates(self._splits[split], split, self._limits[split], rng)

    def n_images(self, split: str) -> int:
        """Number of candidate images of a split."""
        return len(self._splits[split])

    def read_image(self, key: str) -> bytes:
        """The bytes of one image; see `PairSource.read_image`."""
        return self._by_key[key].read()


class StreamSource(PairSource):
    """Pairs that come one after the other and are taken as they come.

    Without a test stream the validation stream is the test set, and a split that is still missing
    takes the first images of the training stream: test, then validation, then training.
    """

    def __init__(
        self,
        name: str,
        description: str,
        fingerprint: str,
        streams: Mapping[str, Iterator[ImageRecord]],
        n_train_pairs: int | None,
    ) -> None:
        super().__init__(name, description, fingerprint)
        self._streams = dict(streams)
        if "train" not in self._streams:
            self._streams = {"train": chain.from_iterable(streams.values())}
        elif "test" not in self._streams and "validation" in self._streams:
            self._streams["test"] = self._streams.pop("validation")
        self._carved_pairs = CARVED_SHARE * (n_train_pairs or float("inf"))

    def records(self, split: str) -> Iterator[ImageRecord]:
        """Candidates of a split; a second call goes on where the first one stopped."""
        if split in self._streams:
            records = self._streams[split]
        else:
            records = _until(self._streams["train"], self._carved_pairs)
        if split != "validation":
            return records
        return (replace(record, captions=record.captions[:1]) for record in records)


def _until(records: Iterator[ImageRecord], n_pairs: float) -> Iterator[ImageRecord]:
    """Records up to a number of pairs; takes none from the iterator beyond those it yields."""
    for record in records:
        yield record
        n_pairs -= len(record.captions)
        if n_pairs <= 0:
            return


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


# --- Splits and order -----------------------------------------------------------------------------


def complete_splits(
    official: Mapping[str, Sequence[T]], limits: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, list[T]], str]:
    """Images by split, the missing splits carved out of training at random.

    Without test images the official validation images become the test images. A carved split has
    the size asked for, but never more than a fifth of the training images.

    Returns:
        Images by split, and one phrase that says what was done.
    """
    splits = {split: list(official.get(split, ())) for split in SPLITS}
    notes = []
    if not splits["train"]:
        splits = {"train": [*splits["validation"], *splits["test"]], "validation": [], "test": []}
    elif not splits["test"] and splits["validation"]:
        splits["test"], splits["validation"] = splits["validation"], []
        notes.append("test is the official validation split")
    rest = splits["train"]
    most = max(1, int(CARVED_SHARE * len(rest)))
    missing = [split for split in ("test", "validation") if not splits[split]]
    if missing:
        rest = [rest[i] for i in rng.permutation(len(rest))]
        notes.append(f"{' and '.join(missing)} drawn at random from train")
    for split in missing:
        size = min(limits[split], most)
        splits[split], rest = rest[:size], rest[size:]
    splits["train"] = rest
    sizes = ", ".join(f"{split} {len(splits[split]):,}" for split in SPLITS)
    return splits, "; ".join([f"images: {sizes}", *notes])


def order_candidates(
    images: Sequence[ImageRecord], split: str, limit: int, rng: np.random.Generator
) -> Iterator[ImageRecord]:
    """Images at random in the order in which they are tried.

    For training the first `limit` pairs are dealt in rounds, one caption of every image a round,
    and grouped by image; the pairs after them follow one by one, in case that some of the former
    are unusable. Validation stops after the first round. Test images keep all captions.
    """
    order = [images[i] for i in rng.permutation(len(images))]
    if split == "test":
        yield from order
        return
    hands = [[image.captions[i] for i in rng.permutation(len(image.captions))] for image in order]
    n_rounds = max(map(len, hands), default=0) if split == "train" else 1
    pairs = (
        (i, hand[dealt])
        for dealt in range(n_rounds)
        for i, hand in enumerate(hands)
        if dealt < len(hand)
    )
    chosen: dict[int, list[Caption]] = {}
    for _, (i, caption) in zip(range(limit), pairs):  # noqa: B905 - either may be the shorter
        chosen.setdefault(i, []).append(caption)
    for i, captions in chosen.items():
        yield replace(order[i], captions=tuple(captions))
    for i, caption in pairs:
        yield replace(order[i], captions=(caption,))


def _official_split(name: str) -> str | None:
    return SPLIT_OF.get(name.strip().casefold())


# --- Synthetic scenes -----------------------------------------------------------------------------


def open_synthetic(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """Drawn scenes, as many as asked for; see `synthetic`."""
    seed = int(rng.integers(2**63))
    limits = config.limits()
    official: dict[str, list[ImageRecord]] = {}
    position = 0
    for split in SPLITS:
        official[split] = []
        for i, example in enumerate(synthetic.make_examples(split, limits[split], seed)):
            captions = tuple(
                Caption(position + j, text, example.fault)
                for j, text in enumerate(example.captions)
            )
            position += len(captions)
            read = partial(synthetic.render, example)
            official[split].append(ImageRecord(f"{split}/{i:06d}", read, captions, example.group))
    fingerprint = _digest("synthetic", synthetic.DRAWING_VERSION, seed, limits)
    return IndexedSource("synthetic", "drawn scenes", fingerprint, official, limits, rng)


# --- COCO on disk ---------------------------------------------------------------------------------


def open_coco_files(data_dir: str, config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """COCO captions in their official layout.

    Raises:
        InputError: the folder holds none, or an annotation file is damaged.
    """
    root = Path(data_dir)
    for year in ("2017", "2014"):
        names = (f"annotations/captions_{part}{year}.json" for part in ("train", "val"))
        paths = [root / name for name in names if (root / name).is_file()]
        if paths and data_dir:  # an empty name is not the current folder
            break
    else:
        raise InputError(
            f"--data_dir {data_dir} holds no COCO (annotations/captions_train2017.json, "
            "train2017/, val2017/); for images and captions of your own use --dataset folder"
        )
    pairs: list[tuple[str, str]] = []
    splits: dict[str, str] = {}
    for path in paths:
        folder = path.stem.removeprefix("captions_")
        try:
            content = json.loads(path.read_bytes())
            files = {image["id"]: f"{folder}/{image['file_name']}" for image in content["images"]}
            rows = content["annotations"]
            for row in rows:  # an annotation without its image is a missing file
                unknown = f"{folder}/image {row['image_id']}"
                pairs.append((files.setdefault(row["image_id"], unknown), str(row["caption"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged or no COCO captions file: {error!r}") from error
        splits |= dict.fromkeys(files.values(), SPLIT_OF[folder.removesuffix(year)])
    description = f"COCO {year} in {root}"
    return _file_source("coco", description, root, pairs, splits, list_files(root), config, rng)


# --- Folders of images and captions ---------------------------------------------------------------


def open_folder(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of a folder in any of `FOLDER_LAYOUTS`, with an optional splits.csv.

    Raises:
        InputError: no such folder, no captions in it, or a file that cannot be understood.
    """
    if config.data_dir is None or not Path(config.data_dir).is_dir():
        problem = "is needed" if config.data_dir is None else f"{config.data_dir} is not a folder"
        raise InputError(f"--data_dir {problem}; give the folder that holds images and captions")
    root = Path(config.data_dir)
    files = list_files(root)
    pairs, where = _read_captions(root, files)
    if not pairs:
        raise InputError(f"--data_dir {root} holds no captions; understood are {FOLDER_LAYOUTS}")
    splits = _read_splits(root, files, [key for key, _ in pairs])
    description = f"folder {root}, {where}"
    return _file_source("folder", description, root, pairs, splits, files, config, rng)


def _file_source(
    name: str,
    description: str,
    root: Path,
    pairs: Sequence[tuple[str, str]],
    splits: Mapping[str, str],
    files: Mapping[str, tuple[int, int]],
    config: DataConfig,
    rng: np.random.Generator,
) -> IndexedSource:
    captions: dict[str, list[Caption]] = {}
    for position, (key, text) in enumerate(pairs):
        captions.setdefault(key, []).append(Caption(position, text))
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    for key, texts in captions.items():
        split = splits.get(key) if splits else "train"
        if split is not None:
            official[split].append(ImageRecord(key, partial(read_file, root, key), tuple(texts)))
    n_left_out = len(captions) - sum(map(len, official.values()))
    description += f": {len(captions):,} images, {len(pairs):,} captions"
    if n_left_out:
        description += f", {n_left_out:,} images in no split left out"
    fingerprint = _digest(name, pairs, dict(splits), [(key, files.get(key)) for key in captions])
    return IndexedSource(name, description, fingerprint, official, config.limits(), rng)


def list_files(root: Path) -> dict[str, tuple[int, int]]:
    """Size in bytes and modification time in ns of every visible file, by path from `root`."""
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            status = path.lstat()
            files[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
    return files


def read_file(root: Path, key: str) -> bytes:
    """The bytes of a file under a folder.

    Raises:
        UnusableImage: the path leads out of the folder.
        OSError: there is no such file, or it cannot be read.
    """
    base, path = os.path.realpath(root), os.path.realpath(root / key)
    if os.path.commonpath([base, path]) != base:
        raise UnusableImage(OUTSIDE_FOLDER, key)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError(key)
    return Path(path).read_bytes()


def _read_captions(root: Path, files: Mapping[str, object]) -> tuple[list[tuple[str, str]], str]:
    """(image path from the root, caption) of every pair of a folder, and where they were found."""
    named = [name for name in CAPTION_FILES if name in files]
    metadata = [f for f in files if posixpath.basename(f) in ("metadata.csv", "metadata.jsonl")]
    tables = [f for f in files if "/" not in f and f.endswith((".csv", ".tsv"))]
    others = sorted(set(tables) - {*named, SPLIT_FILE})
    for name in named:
        if pairs := read_table(root / name, CAPTION_COLUMNS):
            return _locate(pairs, files), name
    if metadata:
        return [pair for name in metadata for pair in _read_metadata(root, name)], metadata[0]
    usable = {f: pairs for f in others if (pairs := read_table(root / f, CAPTION_COLUMNS))}
    if len(usable) > 1:
        raise InputError(
            f"--data_dir {root}: {', '.join(usable)} all hold captions; rename one captions.csv"
        )
    for name, pairs in usable.items():
        return _locate(pairs, files), name
    images = (f for f in files if f.lower().endswith(IMAGE_SUFFIXES))
    texts = {f: posixpath.splitext(f)[0] + ".txt" for f in images}
    found = {f: _read_text(root / text).splitlines() for f, text in texts.items() if text in files}
    return [(f, "".join(lines[:1])) for f, lines in found.items()], "a text beside each image"


def _read_metadata(root: Path, name: str) -> list[tuple[str, str]]:
    path = root / name
    pairs = read_json_lines(path) if name.endswith("l") else read_table(path, CAPTION_COLUMNS)
    if pairs is None:
        raise InputError(
            f"{path} needs a file_name column and a caption column "
            f"(one of {', '.join(CAPTION_COLUMNS)})"
        )
    folder = posixpath.dirname(name)
    return [(_clean_path(posixpath.join(folder, file)), caption) for file, caption in pairs]


def _read_text(path: Path) -> str:
    """UTF-8, or UTF-16 with its mark; lines that are neither as Windows-1252, with a notice."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").replace("\0", "")
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    n_other = 0
    texts = []
    for line in lines:
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            texts.append(line.decode("cp1252", errors="replace"))
            n_other += 1
    if n_other:
        logger.warning("%s: %d lines are not UTF-8; read as Windows-1252", path, n_other)
    return "\n".join(texts).replace("\0", "")


def read_table(path: Path, value_columns: Sequence[str]) -> list[tuple[str, str]] | None:
    """(file, value) of every row of a CSV or TSV whose header names both columns.

    A row with more fields than the header holds an unquoted caption with the delimiter in it,
    which is put together again.

    Returns:
        Rows, or None where no delimiter makes a header with a file and a value column.
    """
    csv.field_size_limit(2**31 - 1)
    text = _read_text(path)
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for delimiter in ",;\t|":
        names = next(csv.reader([first_line], delimiter=delimiter), [])
        header = [name.strip().casefold() for name in names]
        file_at = next((i for i, name in enumerate(header) if name in FILE_COLUMNS), None)
        value_at = next((i for i, name in enumerate(header) if name in value_columns), None)
        if file_at is not None and value_at is not None:
            break
    else:
        return None
    pairs = []
    for row in list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))[1:]:
        if not any(field.strip() for field in row):
            continue
        row += [""] * (len(header) - len(row))
        extra = len(row) - len(header)
        file = row[file_at + (extra if file_at > value_at else 0)]
        pairs.append((file.strip(), delimiter.join(row[value_at : value_at + 1 + extra])))
    return pairs


def read_json_lines(path: Path) -> list[tuple[str, str]] | None:
    """(file, caption) of every line of a JSON lines file; a list of captions gives several.

    Raises:
        InputError: a line is not a JSON object.
    """
    pairs = []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = {str(name).casefold(): value for name, value in json.loads(line).items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not a JSON object; correct it") from error
        file = next((row[name] for name in FILE_COLUMNS if name in row), None)
        column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if file is None or column is None:
            return None
        captions = row[column] if isinstance(row[column], list) else [row[column]]
        pairs += [(str(file), "" if text is None else str(text)) for text in captions]
    return pairs


def _read_splits(root: Path, files: Mapping[str, object], keys: Iterable[str]) -> dict[str, str]:
    """Split of every image that has one: from splits.csv, or from top folders named like splits."""
    if SPLIT_FILE not in files:
        folders = {key: _official_split(PurePosixPath(key).parts[0]) for key in keys if "/" in key}
        named = {key: split for key, split in folders.items() if split is not None}
        return named if len(named) == len(set(keys)) else {}
    path = root / SPLIT_FILE
    rows = read_table(path, ("split",))
    if rows is None:
        raise InputError(f"{path} needs the columns image and split")
    splits = {}
    for key, name in _locate(rows, files):
        split = _official_split(name)
        if split is None:
            raise InputError(f"{path}: split must be train, validation or test; got {name!r}")
        splits[key] = split
    return splits


def _locate(rows: Sequence[tuple[str, str]], files: Mapping[str, object]) -> list[tuple[str, str]]:
    """Rows with the file as a path from the root: as written, else in the subfolder of most."""
    rows = [(_clean_path(file), value) for file, value in rows]
    lost = {file for file, _ in rows if file not in files}
    by_name: dict[str, list[str]] = {}
    for path in files:
        by_name.setdefault(posixpath.basename(path), []).append(path)
    prefixes = Counter(
        path[: -len(file)]
        for file in lost
        for path in by_name.get(posixpath.basename(file), ())
        if path.endswith(f"/{file}")
    )
    prefix = min(prefixes, key=lambda p: (-prefixes[p], p), default="")
    return [(prefix + f if f in lost and prefix + f in files else f, value) for f, value in rows]


def _clean_path(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/")) if path else ""


# --- Tables and streams through `datasets` --------------------------------------------------------


def open_hf(name: str, config: DataConfig, rng: np.random.Generator) -> PairSource:
    """A data set of `datasets`: a local folder, a stream from the Hub, or the Hub's local cache.

    Raises:
        InputError: it cannot be had, or lacks a column.
    """
    repo = config.hf_dataset
    if Path(repo).is_dir():
        folder = Path(repo)
        tables, version = _local_tables(folder), sorted(list_files(folder).items())
        return _table_source(name, f"folder {repo}", tables, version, config, rng)
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
    return _table_source(name, f"{repo}, from the local cache", cached, cache_files, config, rng)


def _local_tables(folder: Path) -> Mapping[str, Any]:
    """The tables of a save_to_disk folder or of a folder of parquet files."""
    datasets = _import_datasets()
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        words = re.findall("[a-z]+", f"{path.stem} {path.parent.name}".lower())
        split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")
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
    config: DataConfig,
    rng: np.random.Generator,
) -> IndexedSource:
    """Pairs of `datasets.Dataset` tables, rows of the same id taken together.

    `version` stands for the images in the fingerprint: it changes when the files do.
    """
    datasets = _import_datasets()
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    n_pairs, seen = 0, []
    for part, table in _by_official_split(tables).items():
        caption_column, *ids, image_column = _check_columns(table.column_names, config)
        images = table.select_columns([image_column]).with_format(None)
        images = images.cast_column(image_column, datasets.Image(decode=False))
        columns = table.select_columns([caption_column, *ids]).with_format(None)[:]
        keys = columns[ids[0]] if ids else range(len(table))
        captions: dict[Hashable, list[Caption]] = {}
        first_rows: dict[Hashable, int] = {}
        for row, (key, cell) in enumerate(zip(keys, columns[caption_column], strict=True)):
            first_rows.setdefault(key, row)
            for text in _as_text(cell, caption_column):
                captions.setdefault(key, []).append(Caption(n_pairs, text))
                n_pairs += 1
        official[part if part in SPLITS else "train"] += [
            ImageRecord(f"{part}/{key}", partial(_row_bytes, images, row, image_column), tuple(c))
            for (key, row), c in zip(first_rows.items(), captions.values(), strict=True)
        ]
        seen.append([part, columns])
    n_images = sum(map(len, official.values()))
    description = f"{origin}: {n_images:,} images, {n_pairs:,} captions"
    fingerprint = _digest(name, config.image_column, seen, version)
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
    fingerprint = _digest(name, repo, builder.hash, names, config.id_column)
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
    position = first_position
    try:
        for key, group in groupby(enumerate(rows), key=lambda r: r[1][ids[0]] if ids else r[0]):
            members = [row for _, row in group]
            texts = [t for row in members for t in _as_text(row[caption_column], caption_column)]
            captions = tuple(Caption(position + i, text) for i, text in enumerate(texts))
            position += len(captions)
            read = partial(_cell_bytes, members[0][image_column])
            yield ImageRecord(f"{part}/{key}", read, captions)
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


def _as_text(value: object, column: str) -> list[str]:
    """The captions of one table cell; a cell without any is one empty caption."""
    values: list[Any] = (value or [None]) if isinstance(value, list) else [value]
    if any(not isinstance(text, str | None) for text in values):
        raise InputError(f"--caption_column {column} holds {type(values[0]).__name__}, not text")
    return [text or "" for text in values]


def _row_bytes(table: Any, row: int, column: str) -> bytes:
    return _cell_bytes(table[row][column])


def _cell_bytes(cell: Any) -> bytes:
    """The bytes of a cell of `datasets.Image(decode=False)`."""
    if not cell or (cell["bytes"] is None and not cell["path"]):
        raise FileNotFoundError("empty cell")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    from datasets.utils.file_utils import xopen

    with xopen(cell["path"], "rb") as file:
        return bytes(file.read())


def _import_datasets() -> Any:
    """The `datasets` library, which takes seconds to import, quiet where there is no terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
