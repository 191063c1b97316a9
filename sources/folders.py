"""Pairs in folders: images with captions in any of the usual layouts."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.settings import InputError
from sources.base import DataConfig
from sources.beside import Texts, read_beside, texts_by_image
from sources.columns import CAPTION_COLUMNS, SPLIT_COLUMN
from sources.file_pairs import About, FilePair, file_source
from sources.image_files import is_image_name, looks_like_base64
from sources.locate import Asked, Locator
from sources.manifests import TABLE_SUFFIXES, Manifest, Row, read_manifest
from sources.official import SPLIT_FILE, Named, find_splits
from sources.paths import (
    current_snapshot,
    list_files,
    natural_order,
    split_from_path,
    storable_name,
)
from sources.places import Place, place_at
from sources.splits import IndexedSource, official_split

CAPTION_FILES = ("captions.txt", "captions.csv", "captions.tsv", "results.csv")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
TOKEN_SUFFIXES = (".token", ".token.txt")  # how the captions of Flickr8k and Flickr30k end
MAX_TABLES = 50  # of one kind in a folder; more are files of single images, not tables of many
MAX_DEPTH = 3  # folders down that tables are looked for
N_SHOWN = 6  # of files and tables in messages
PACKED_SUFFIXES = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
FOLDER_LAYOUTS = (
    "captions.txt or any other CSV, TSV, JSON, JSON lines or parquet table of file and caption, "
    "metadata.csv or metadata.jsonl with file_name and caption, or a name.txt beside each name.jpg"
)


def open_folder(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of a folder in any of `FOLDER_LAYOUTS`, with its splits where it has some.

    Raises:
        InputError: no such folder, no captions in it, or a file that cannot be understood.
    """
    place = None if config.data_dir is None else place_at(config.data_dir)
    if place is None or not place.is_dir():
        problem = "is needed" if config.data_dir is None else f"{config.data_dir} is not a folder"
        if (config.data_dir or "").lower().endswith(PACKED_SUFFIXES):
            problem += "; unpack it"
        raise InputError(f"--data_dir {problem}; give the folder that holds images and captions")
    root, snapshot_notes = current_snapshot(place)
    files = list_files(root)
    found = find_captions(root, files, config)
    if not found.manifests:
        raise InputError(_nothing_fits(root, files, found, config))
    locator = Locator(root, files)
    pairs = _locate_pairs(found, locator)
    _check_addresses(root, found, pairs, files)
    said = dict.fromkeys((pair.key, pair.split, pair.table) for pair in pairs)
    named = [Named(*of_image) for of_image in said]
    columns = (m.columns.split for m in found.manifests if m.columns is not None)
    splits = find_splits(root, files, named, next(filter(None, columns), SPLIT_COLUMN))
    notes = [
        *snapshot_notes,
        *found.notes,
        *locator.notes(),
        *splits.notes,
        *_unnamed_note(files, pairs),
    ]
    about = About("folder", f"folder {root}, {found.where}", notes)
    return file_source(about, pairs, splits.of, locator, files, config, rng)


def _unnamed_note(files: Iterable[str], pairs: Iterable[FilePair]) -> list[str]:
    """How many images of the folder no row names."""
    named = {pair.key for pair in pairs}
    n = sum(is_image_name(file) and file not in named for file in files)
    return [f"images that no row names, not read: {n:,}"] if n else []


def _nothing_fits(root: Place, files: Collection[str], found: Captions, config: DataConfig) -> str:
    """An error that tells what was seen, and what would be read."""
    kinds = Counter(posixpath.splitext(file)[1].lower() or "no extension" for file in files)
    listed = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(N_SHOWN))
    tables = "; ".join(found.unfit[:N_SHOWN])
    hints = [f"; it holds {listed}" if files else "; it is empty"]
    if tables:
        flags = ("image_column", "caption_column")
        given = [f"--{f} {v}" for f in flags if (v := getattr(config, f)) != getattr(DataConfig, f)]
        names = f"by {' and '.join(given)}" if given else "by their names"
        hints.append(
            f"; seen, but without images and captions {names}: {tables}; name the columns "
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
    if any(file.lower().endswith((".xlsx", ".xls", ".ods")) for file in files):
        return ". Export the spreadsheet as CSV"
    return ""


def _check_addresses(
    root: Place, found: Captions, pairs: Sequence[FilePair], files: Collection[str]
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


def find_captions(root: Place, files: Collection[str], config: DataConfig) -> Captions:
    """The tables that name images and captions, the usual names first; else texts beside images.

    Raises:
        InputError: several tables could be meant, or one cannot be understood.
    """
    named = [name for name in CAPTION_FILES if name in files]
    metadata = [f for f in files if posixpath.basename(f) in METADATA_FILES]
    candidates = _candidates(files)
    at_the_top = [name for name in candidates if "/" not in name]
    texts = texts_by_image(root, files)
    unfit: list[str] = []
    for name in named:
        manifest = read_manifest(root, name, config)
        if manifest.rows:
            return _chosen([manifest], {*at_the_top, *metadata}, texts)
        unfit.append(manifest.shown_columns())
    if metadata:
        manifests = [_read_metadata(root, name, config) for name in metadata]
        return _chosen(manifests, {*at_the_top}, texts)
    for depth in range(MAX_DEPTH + 1):
        manifests = [
            read_manifest(root, name, config)
            for name in candidates
            if name.count("/") == depth and name not in named
        ]
        usable = [manifest for manifest in manifests if manifest.rows]
        unfit += [m.shown_columns() for m in manifests if not (m.rows or m.has_images)]
        n_named = len({row.file for manifest in usable for row in manifest.rows})
        if usable and (depth or 2 * n_named > len(texts.of)):
            together = _belonging_together(root, usable)
            return _chosen(together, {m.name for m in usable}, texts)
        beside = read_beside(root, files, texts, config) if depth == 0 else None
        if beside is not None and beside.rows:
            where, not_read = "a text beside each image", [m.name for m in usable]
            notes = (*beside.notes, *_not_read_note(not_read))
            return Captions([Manifest("", beside.rows)], where, notes)
    return Captions((), "", unfit=tuple(unfit))


def _chosen(manifests: Sequence[Manifest], others: Iterable[str], texts: Texts) -> Captions:
    """Tables that are read, with what is said of them, of other tables and of texts."""
    where = ", ".join(storable_name(manifest.name) for manifest in manifests[:N_SHOWN])
    if len(manifests) > N_SHOWN:
        where += f" and {len(manifests) - N_SHOWN:,} more"
    notes = [note for manifest in manifests for note in manifest.notes()]
    notes += _not_read_note(set(others) - {manifest.name for manifest in manifests})
    if texts.of:
        notes.append(f"texts beside images not read: {len(texts.of):,}")
    return Captions(manifests, where, tuple(dict.fromkeys(notes)))


def _not_read_note(names: Iterable[str]) -> list[str]:
    names = sorted(names, key=natural_order)
    more = f" and {len(names) - N_SHOWN:,} more" if len(names) > N_SHOWN else ""
    shown = storable_name(", ".join(names[:N_SHOWN]))
    return [f"other tables not read: {shown}{more}"] if names else []


def _read_metadata(root: Place, name: str, config: DataConfig) -> Manifest:
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


def _belonging_together(root: Place, usable: Sequence[Manifest]) -> Sequence[Manifest]:
    """Tables that are read as one: one alone, those of other images each, or one for each split.

    Raises:
        InputError: they are several, and nothing tells which is meant.
    """
    for is_less in (_is_of_lemmas, _is_loose_list):
        better = [manifest for manifest in usable if not is_less(manifest)]
        usable = better or usable
    with_splits = [m for m in usable if m.columns is not None and m.columns.split is not None]
    files = [_files_of(manifest) for manifest in usable]
    if len(set().union(*files)) == sum(map(len, files)):
        return usable
    of_splits = [manifest for manifest in usable if split_from_path(manifest.name)]
    stems = {posixpath.splitext(manifest.name)[0] for manifest in of_splits}
    n_splits = len({split_from_path(manifest.name) for manifest in of_splits})
    if n_splits > 1 and len(stems) == len(of_splits):
        return of_splits
    if len(with_splits) == 1:  # as Karpathy's table beside the captions as they were published
        return with_splits
    raise InputError(
        f"--data_dir {root}: {', '.join(m.name for m in usable)} all hold captions; move those "
        "that are not meant out of the folder"
    )


def _is_of_lemmas(manifest: Manifest) -> bool:
    """Whether it holds Flickr8k's captions a second time, without endings."""
    return ".lemma." in manifest.name


def _is_loose_list(manifest: Manifest) -> bool:
    """Whether it is a text of lines that only begin like a table's, such as a list of addresses."""
    is_known = manifest.columns is not None or manifest.name.endswith(TOKEN_SUFFIXES)
    return not is_known and manifest.name.endswith(".txt")


def _files_of(manifest: Manifest) -> set[str]:
    """The files that a table names, seen from the data folder."""
    folder = posixpath.dirname(manifest.name)
    return {posixpath.join(folder, row.file) for row in manifest.rows}
