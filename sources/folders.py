"""Pairs in folders: images with captions in any of the usual layouts."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.settings import InputError
from sources.base import DataConfig
from sources.beside import read_beside
from sources.columns import CAPTION_COLUMNS
from sources.file_pairs import About, FilePair, file_source
from sources.image_files import is_image_name, looks_like_base64
from sources.locate import Asked, Locator
from sources.manifests import TABLE_SUFFIXES, Manifest, Row, read_manifest
from sources.official import SPLIT_FILE, Named, find_splits
from sources.paths import list_files, natural_order, split_from_path, storable_name
from sources.splits import IndexedSource, official_split

CAPTION_FILES = ("captions.txt", "captions.csv", "captions.tsv", "results.csv")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
MAX_TABLES = 50  # of one kind in a folder; more are files of single images, not tables of many
MAX_DEPTH = 3  # folders down that tables are looked for
N_SHOWN = 6  # of files and tables in messages
PACKED_SUFFIXES = (".zip", ".7z", ".rar", ".tar.gz", ".tgz")
FOLDER_LAYOUTS = (
    "captions.txt or any other CSV, TSV, JSON, JSON lines or parquet table of file and caption, "
    "metadata.csv or metadata.jsonl with file_name and caption, or a name.txt beside each name.jpg"
)


def open_folder(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of a folder in any of `FOLDER_LAYOUTS`, with its splits where it has some.

    Raises:
        InputError: no such folder, no captions in it, or a file that cannot be understood.
    """
    if config.data_dir is None or not Path(config.data_dir).is_dir():
        problem = "is needed" if config.data_dir is None else f"{config.data_dir} is not a folder"
        if (config.data_dir or "").lower().endswith(PACKED_SUFFIXES):
            problem += "; unpack it"
        raise InputError(f"--data_dir {problem}; give the folder that holds images and captions")
    root = Path(config.data_dir)
    files = list_files(root)
    found = find_captions(root, files, config)
    if not found.manifests:
        raise InputError(_nothing_fits(root, files, found))
    locator = Locator(root, files)
    pairs = _locate_pairs(found, locator)
    _check_addresses(root, found, pairs, files)
    said = dict.fromkeys((pair.key, pair.split, pair.table) for pair in pairs)
    named = [Named(*of_image) for of_image in said]
    splits = find_splits(root, files, named, by_table=len(found.manifests) > 1)
    notes = [*found.notes, *locator.notes(), *splits.notes]
    about = About("folder", f"folder {root}, {found.where}", notes)
    return file_source(about, pairs, splits.of, locator, files, config, rng)


def _nothing_fits(root: Path, files: Collection[str], found: Captions) -> str:
    """An error that tells what was seen, and what would be read."""
    kinds = Counter(posixpath.splitext(file)[1].lower() or "no extension" for file in files)
    listed = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(N_SHOWN))
    tables = "; ".join(found.unfit[:N_SHOWN])
    hints = [f"; it holds {listed}" if files else "; it is empty"]
    if tables:
        hints.append(
            f"; seen, but without images and captions by their names: {tables}; name the columns "
            "with --image_column and --caption_column"
        )
    return (
        f"--data_dir {root} holds no captions; understood are {FOLDER_LAYOUTS}"
        f"{storable_name(''.join(hints))}{_others(files)}"
    )


def _others(files: Iterable[str]) -> str:
    """A hint where the files are those of another kind of source."""
    files = list(files)
    for suffix, dataset in ((".tar", "webdataset"), (".parquet", "parquet")):
        if found := sum(file.endswith(suffix) for file in files):
            return f". It holds {found:,} {suffix} files: --dataset {dataset} reads such"
    if any(file.lower().endswith(PACKED_SUFFIXES) for file in files):
        return ". Unpack what is packed, and give the folder that comes out"
    return ""


def _check_addresses(
    root: Path, found: Captions, pairs: Sequence[FilePair], files: Collection[str]
) -> None:
    """Refuse a table of addresses of which not a single image is in the folder."""
    addresses = [pair for pair in pairs if re.match("https?:/", pair.key)]
    if addresses and not any(pair.key in files for pair in pairs):
        raise InputError(
            f"--data_dir {root}: {found.where} names images by addresses such as "
            f"{addresses[0].written[:100]}; download them with img2dataset and give its folder"
        )


def _locate_pairs(found: Captions, locator: Locator) -> list[FilePair]:
    """Every caption of every manifest with the path of its image."""
    locator.plan(asked for *_, asked, row in _asked_rows(found) if not row.missing)
    pairs: list[FilePair] = []
    for manifest, number, asked, row in _asked_rows(found):
        key, missing, content = f"{manifest.name}/{number}", row.missing, ""
        if looks_like_base64(row.file):
            content = row.file
        elif not row.file:
            missing = f"row {number + 1:,} of {storable_name(manifest.name)} names no image"
        else:
            key = row.file if missing else locator.find(*asked)
        table = manifest.name if len(found.manifests) > 1 else ""
        about = row.split, table, asked.written, missing, content
        pairs += [FilePair(key, text, *about) for text in row.captions]
    return pairs


def _asked_rows(found: Captions) -> Iterator[tuple[Manifest, int, Asked, Row]]:
    """Every row with its table, its number and the file that it names, if it names one."""
    for manifest in found.manifests:
        of_table = split_from_path(manifest.name) if len(found.manifests) > 1 else None
        folder = posixpath.dirname(manifest.name)
        for number, row in enumerate(manifest.rows):
            split = official_split(row.split) if row.split else of_table
            written = "" if looks_like_base64(row.file) else row.file
            yield manifest, number, Asked(written, folder, split), row


# --- Which tables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captions:
    """Where the captions of a folder stand.

    Attributes:
        manifests: tables, or one that stands for the texts beside images.
        where: what they are called.
        notes: what was taken and what was not, a phrase each.
        unfit: tables that name no images and captions, with their columns.
    """

    manifests: Sequence[Manifest]
    where: str
    notes: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()


def find_captions(root: Path, files: Collection[str], config: DataConfig) -> Captions:
    """The tables that name images and captions, the usual names first; else texts beside images.

    Raises:
        InputError: several tables could be meant, or one cannot be understood.
    """
    named = [name for name in CAPTION_FILES if name in files]
    for name in named:
        manifest = read_manifest(root, name, config)
        if manifest.rows:
            return _chosen([manifest], [other for other in named if other != name])
    metadata = [f for f in files if posixpath.basename(f) in METADATA_FILES]
    if metadata:
        return _chosen([_read_metadata(root, name, config) for name in metadata])
    unfit: list[str] = []
    candidates = _candidates(files)
    for depth in range(MAX_DEPTH + 1):
        manifests = [
            read_manifest(root, name, config)
            for name in candidates
            if name.count("/") == depth and name not in named
        ]
        usable = [manifest for manifest in manifests if manifest.rows]
        unfit += [m.shown_columns() for m in manifests if not m.rows]
        if usable:
            return _chosen(_belonging_together(root, usable))
        beside = read_beside(root, files, config) if depth == 0 else None
        if beside is not None and beside.rows:
            where = "a text beside each image"
            return Captions([Manifest("", beside.rows)], where, beside.notes)
    return Captions((), "", unfit=tuple(unfit))


def _chosen(manifests: Sequence[Manifest], not_read: Sequence[str] = ()) -> Captions:
    where = ", ".join(storable_name(manifest.name) for manifest in manifests[:N_SHOWN])
    if len(manifests) > N_SHOWN:
        where += f" and {len(manifests) - N_SHOWN:,} more"
    notes = dict.fromkeys(note for manifest in manifests for note in manifest.notes())
    if not_read:
        notes[f"tables not read: {', '.join(not_read)}"] = None
    return Captions(manifests, where, tuple(notes))


def _read_metadata(root: Path, name: str, config: DataConfig) -> Manifest:
    manifest = read_manifest(root, name, config)
    if not manifest.rows:
        raise InputError(
            f"{root / name} needs a file_name column and a caption column "
            f"(one of {', '.join(CAPTION_COLUMNS)}); it has {', '.join(manifest.seen) or 'none'}"
        )
    return manifest


def _candidates(files: Collection[str]) -> list[str]:
    """Files that may be tables of many images, in natural order."""
    stems = {posixpath.splitext(file)[0] for file in files if is_image_name(file)}
    kinds: dict[tuple[str, str], list[str]] = {}
    for file in files:
        stem, suffix = posixpath.splitext(file)
        is_of_one = stem in stems or (stem in files and is_image_name(stem))
        if suffix.lower() in TABLE_SUFFIXES and not is_of_one and file != SPLIT_FILE:
            kinds.setdefault((posixpath.dirname(file), suffix.lower()), []).append(file)
    found: list[str] = []
    for (_, suffix), names in kinds.items():
        captions = [name for name in names if posixpath.basename(name).startswith("captions")]
        if suffix == ".json" and captions:  # COCO's other tables are large, and hold none
            names = captions
        found += names if len(names) <= MAX_TABLES else []
    return sorted((name for name in found if not name.endswith("_stats.json")), key=natural_order)


def _belonging_together(root: Path, usable: Sequence[Manifest]) -> Sequence[Manifest]:
    """Tables that are read as one: one alone, one for each split, or numbered parts.

    Raises:
        InputError: they are several, and nothing tells which is meant.
    """
    lemmas = [m for m in usable if ".lemma." in m.name]
    if len(lemmas) < len(usable):  # Flickr8k's captions a second time, without endings
        usable = [m for m in usable if m not in lemmas]
    stems = [posixpath.splitext(m.name)[0] for m in usable]
    name_splits = all(split_from_path(posixpath.basename(stem)) for stem in stems)
    are_parts = len({re.sub("[0-9]+", "0", m.name) for m in usable}) == 1
    if len(usable) > 1 and not (len(set(stems)) == len(stems) and (name_splits or are_parts)):
        raise InputError(
            f"--data_dir {root}: {', '.join(m.name for m in usable)} all hold captions; rename one "
            "captions.csv"
        )
    return usable
