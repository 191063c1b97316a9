"""Pairs in folders: images with captions in any of the usual layouts, and COCO as downloaded."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from artifacts.settings import InputError
from sources.base import (
    OUTSIDE_FOLDER,
    SPLIT_OF,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
)
from sources.captions import caption_in, captions_in
from sources.columns import CAPTION_COLUMNS
from sources.paths import clean_path, decode_text, list_files, read_file, storable_name
from sources.splits import IndexedSource, digest, official_split

MAX_TABLE_BYTES = 2**29  # of captions, which are read whole
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FILE_COLUMNS = ("image", "file", "filename", "file_name", "image_name", "filepath", "path")
CAPTION_FILES = ("captions.txt", "captions.csv", "captions.tsv", "results.csv")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
SPLIT_FILE = "splits.csv"
TOKEN_FILES = (".token", ".token.txt")  # how the captions of Flickr8k and Flickr30k end
FOLDER_LAYOUTS = (
    "captions.txt or a CSV or TSV of file and caption, metadata.csv or metadata.jsonl "
    "with file_name and caption, or a name.txt beside each name.jpg"
)


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
            "train2017/, val2017/); for images and captions of your own use --dataset folder, "
            "webdataset or parquet"
        )
    pairs: list[tuple[str, str | None]] = []
    splits: dict[str, str] = {}
    for path in paths:
        data = _read_table_file(root, path)
        folder = path.stem.removeprefix("captions_")
        try:
            content = json.loads(data)
            files = {image["id"]: f"{folder}/{image['file_name']}" for image in content["images"]}
            rows = content["annotations"]
            for row in rows:  # an annotation without its image is a missing file
                unknown = f"{folder}/image {row['image_id']}"
                pairs.append(
                    (files.setdefault(row["image_id"], unknown), caption_in(row["caption"]))
                )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
        raise InputError(
            f"--data_dir {root} holds no captions; understood are {FOLDER_LAYOUTS}{_others(files)}"
        )
    splits = _read_splits(root, files, [key for key, _ in pairs])
    description = f"folder {root}, {where}"
    return _file_source("folder", description, root, pairs, splits, files, config, rng)


def _others(files: Iterable[str]) -> str:
    """A hint where the files are those of another kind of source."""
    for suffix, dataset in ((".tar", "webdataset"), (".parquet", "parquet")):
        if found := sum(file.endswith(suffix) for file in files):
            return f". It holds {found:,} {suffix} files: --dataset {dataset} reads such"
    return ""


def _file_source(
    name: str,
    description: str,
    root: Path,
    pairs: Sequence[tuple[str, str | None]],
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
            read, member = partial(read_file, root, key), storable_name(key)
            official[split].append(ImageRecord(member, read, tuple(texts), member=member))
    n_left_out = len(captions) - sum(map(len, official.values()))
    description += f": {len(captions):,} images, {len(pairs):,} captions"
    if n_left_out:
        description += f", {n_left_out:,} images in no split left out"
    fingerprint = digest(name, pairs, dict(splits), [(key, files.get(key)) for key in captions])
    return IndexedSource(name, description, fingerprint, official, config.limits(), rng)


# --- Tables of captions ---------------------------------------------------------------------------


def _read_captions(
    root: Path, files: Mapping[str, object]
) -> tuple[Sequence[tuple[str, str | None]], str]:
    """(image path from the root, caption) of every pair of a folder, and where they were found."""
    named = [name for name in CAPTION_FILES if name in files]
    metadata = [f for f in files if posixpath.basename(f) in METADATA_FILES]
    tables = [f for f in files if "/" not in f and f.endswith((".csv", ".tsv", *TOKEN_FILES))]
    others = sorted(set(tables) - {*named, SPLIT_FILE})
    for name in named:
        if pairs := _read_caption_table(root / name):
            return _locate(pairs, files), name
    if metadata:
        return [pair for name in metadata for pair in _read_metadata(root, name)], metadata[0]
    usable = {f: pairs for f in others if (pairs := _read_caption_table(root / f))}
    if len(usable) > 1:
        raise InputError(
            f"--data_dir {root}: {', '.join(usable)} all hold captions; rename one captions.csv"
        )
    for name, pairs in usable.items():
        return _locate(pairs, files), name
    images = (f for f in files if f.lower().endswith(IMAGE_SUFFIXES))
    texts = {f: posixpath.splitext(f)[0] + ".txt" for f in images}
    if not any(text in files for text in texts.values()):
        return [], ""
    beside = [
        (file, line)
        for file, text in texts.items()
        for line in (_caption_lines(root, text) if text in files else [None])
    ]
    return beside, "a text beside each image"


def _caption_lines(root: Path, name: str) -> list[str | None]:
    """Every line with something on it is a caption; a file without one is an empty caption."""
    try:
        lines = decode_text(read_file(root, name), root / name).splitlines()
    except (UnusableImage, OSError):  # it leads out of the folder, or cannot be read
        return [None]
    return [line for line in lines if line.strip()] or [""]


def _read_metadata(root: Path, name: str) -> Sequence[tuple[str, str | None]]:
    path = root / name
    pairs: Sequence[tuple[str, str | None]] | None
    pairs = read_json_lines(path) if name.endswith("l") else read_table(path, CAPTION_COLUMNS)
    if pairs is None:
        raise InputError(
            f"{path} needs a file_name column and a caption column "
            f"(one of {', '.join(CAPTION_COLUMNS)})"
        )
    folder = posixpath.dirname(name)
    return [(clean_path(posixpath.join(folder, file)), caption) for file, caption in pairs]


def _read_caption_table(path: Path) -> list[tuple[str, str]] | None:
    """(file, caption) of every row, with a header or without; None where there is neither."""
    rows = read_table(path, CAPTION_COLUMNS)
    return read_headless_table(path) if rows is None else rows


def read_headless_table(path: Path) -> list[tuple[str, str]] | None:
    """(file, caption) of every line "file, delimiter, caption", as in Flickr8k.token.txt.

    The number of the caption that may follow the file's name, as in `1.jpg#0`, is left out.

    Returns:
        Rows, or None where the first line does not begin with the name of an image.
    """
    text = _table_text(path)
    first_line = text.lstrip().split("\n", 1)[0]
    for delimiter in "\t,;|":
        file, found, _ = first_line.partition(delimiter)
        if found and _without_number(file.strip('"')).lower().endswith(IMAGE_SUFFIXES):
            break
    else:
        return None
    csv.field_size_limit(2**31 - 1)
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":  # it needs no quotes, and captions may hold any
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, delimiter=delimiter)
    return [
        (_without_number(row[0]), delimiter.join(row[1:]))
        for row in rows
        if any(field.strip() for field in row)
    ]


def _without_number(file: str) -> str:
    return re.sub(r"#\d+$", "", file.strip())


def read_table(path: Path, value_columns: Sequence[str]) -> list[tuple[str, str]] | None:
    """(file, value) of every row of a CSV or TSV whose header names both columns.

    A row with more fields than the header holds an unquoted caption with the delimiter in it,
    which is put together again.

    Returns:
        Rows, or None where no delimiter makes a header with a file and a value column.
    """
    csv.field_size_limit(2**31 - 1)
    text = _table_text(path)
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


def _table_text(path: Path) -> str:
    return decode_text(_read_table_file(path.parent, path), path)


def _read_table_file(root: Path, path: Path) -> bytes:
    try:
        return read_file(root, path.relative_to(root).as_posix(), MAX_TABLE_BYTES)
    except UnusableImage as error:
        outside = error.reason == OUTSIDE_FOLDER
        remedy = "put a copy in its place" if outside else "use parquet files or tar shards"
        raise InputError(f"{path} cannot be used ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct it") from error


def read_json_lines(path: Path) -> list[tuple[str, str | None]] | None:
    """(file, caption) of every line of a JSON lines file; a list of captions gives several.

    An empty list is one missing caption, and so is everything in the place of a text.

    Raises:
        InputError: a line is not a JSON object.
    """
    pairs: list[tuple[str, str | None]] = []
    for number, line in enumerate(_table_text(path).split("\n"), 1):
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
        pairs += [(str(file), text) for text in captions_in(row[column])]
    return pairs


def _read_splits(root: Path, files: Mapping[str, object], keys: Iterable[str]) -> dict[str, str]:
    """Split of every image that has one: from splits.csv, or from top folders named like splits."""
    if SPLIT_FILE not in files:
        folders = {key: official_split(PurePosixPath(key).parts[0]) for key in keys if "/" in key}
        named = {key: split for key, split in folders.items() if split is not None}
        return named if len(named) == len(set(keys)) else {}
    path = root / SPLIT_FILE
    rows = read_table(path, ("split",))
    if rows is None:
        raise InputError(f"{path} needs the columns image and split")
    splits = {}
    for key, name in _locate(rows, files):
        split = official_split(name)
        if split is None:
            raise InputError(f"{path}: split must be train, validation or test; got {name!r}")
        splits[key] = split
    return splits


def _locate(rows: Sequence[tuple[str, str]], files: Mapping[str, object]) -> list[tuple[str, str]]:
    """Rows with the file as a path from the root: as written, else in the subfolder of most."""
    rows = [(clean_path(file), value) for file, value in rows]
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
