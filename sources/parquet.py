"""Pairs in Parquet files: images as bytes or as paths in one column, captions in another.

Captions are read at once, images when they are asked for; see `parquet_images`. Layouts:
img2dataset's `jpg` and `caption`, the Hub's struct of `bytes` and `path`, paths of image files,
base64, lists of one image. The format: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from artifacts.settings import InputError
from sources.arrow import (
    cell_texts,
    cell_values,
    is_bytes,
    is_list,
    is_text,
    plain_column,
    plain_type,
)
from sources.base import (
    MISSING_FILE,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
    datacomp_uid,
)
from sources.captions import TEXT_FIELDS, captions_in
from sources.columns import (
    SPLIT_COLUMN,
    URL_COLUMNS,
    Columns,
    find_columns,
    first_known,
)
from sources.image_files import IMAGE_SUFFIXES, looks_like_base64
from sources.locate import Asked, Locator
from sources.official import column_notes, path_notes, splits_of_paths
from sources.parquet_images import DAMAGE, ImageCells, group_sizes, open_file, problem_of
from sources.paths import (
    current_snapshot,
    leads_out,
    list_files,
    natural_order,
    split_from_path,
    storable_name,
    unread_note,
    version_of,
    what_it_holds,
)
from sources.places import BrokenReadError, Place, Version, place_at
from sources.splits import IndexedSource, digest, official_split

logger = logging.getLogger(__name__)
UID_COLUMN = "uid"
TABLE_SUFFIXES = (".parquet", ".parq", ".pq")
TEXTS_AT_ONCE = 2**14  # rows of captions
N_LOOKED_AT = 64  # cells of texts that tell whether they are paths or images in base64


@dataclass(frozen=True)
class _Layout:
    """Where one file holds what: a column, or a column and its field; empty without one.

    Attributes:
        data: of the images themselves.
        path: of their paths.
        captions: one column, or several side by side.
        id: which rows show the same image.
        uid: DataComp's.
        split: which split a row is of.
        columns: their names, as they are told.
        split_names: what numbers in the column of splits stand for, in the order of numbers.
    """

    data: tuple[str, ...]
    path: tuple[str, ...]
    captions: tuple[str, ...]
    id: tuple[str, ...]
    uid: tuple[str, ...]
    split: tuple[str, ...]
    columns: Columns
    split_names: tuple[str, ...] = ()

    def version(self) -> dict[str, Any]:
        """What of it the pairs follow from."""
        known: dict[str, Any] = {"data": self.data, "path": self.path, "caption": self.captions}
        known |= {"id": self.id, "uid": self.uid}
        return known | ({"split": self.split} if self.split else {})


@dataclass(frozen=True)
class _Table:
    """One file without its images, a list item a row.

    Attributes:
        path: from the data folder.
        layout: where the columns are.
        captions: at least one a row; None is a missing one.
        ids: name of the row's image; None where the row is an image of its own.
        uids: 32 hex digits or "".
        paths: of the image file as written; None without one.
        splits: as written; None without one.
    """

    path: str
    layout: _Layout
    captions: list[list[str | None]]
    ids: list[str | None]
    uids: list[str]
    paths: list[str | None]
    splits: list[str | None]


def open_parquet(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of a folder of Parquet files, or of one file.

    Damaged files are left out with a warning. Rows with the same id in the same split are one
    image, that of the first of them; a caption from another file than that row has no row number.

    Raises:
        InputError: no such folder or file, no readable table in it, or a table without the columns.
    """
    root, names, listed, found_notes = _find_tables(config.data_dir)
    tables, problems, n_broken = [], [], 0
    for name in tqdm(names, desc="parquet files", unit="file", disable=None, leave=False):
        try:
            tables.append(_read_table(root, name, config))
        except InputError:
            raise
        except DAMAGE as error:
            problems.append(problem_of(error))
            path = storable_name(str(root / name))
            is_broken = isinstance(error, BrokenReadError)
            n_broken += is_broken
            fault = "cannot be read" if is_broken else "is damaged or no Parquet file"
            logger.warning("%s %s; left out: %s", path, fault, problems[-1])
    if not any(table.captions for table in tables):
        problem = f"none can be read ({problems[0]})" if not tables else "they have no rows"
        raise InputError(f"--data_dir {config.data_dir}: {len(names):,} parquet files, {problem}")
    images = _Images(root, Locator(root, listed))
    images.plan(tables)
    splits = _find_splits(tables, images)
    _check_addresses(tables, images, listed, config)
    official = _group_rows(tables, splits.of, images)
    records = [record for split in SPLITS for record in official[split]]
    n_pairs = sum(len(record.captions) for record in records)
    description = f"{len(tables):,} parquet files in {config.data_dir}: "
    description += f"{len(records):,} images, {n_pairs:,} captions"
    unread = _left_out(len(problems) - n_broken, n_broken)
    if unread:
        description += f", {' and '.join(unread)} left out"
    columns = dict.fromkeys(table.layout.columns.note() for table in tables)
    members = {record.member for record in records}
    others = [name for name in listed if name not in names and storable_name(name) not in members]
    notes = [*found_notes, *columns, *images.locator.notes(), *splits.notes, *unread_note(others)]
    versions = {storable_name(name): version for name, version in listed.items()}
    fingerprint = digest(
        "parquet",
        [(table.path, table.layout.version(), version_of(root, table.path)) for table in tables],
        [(r.key, versions.get(r.member), [c.text for c in r.captions]) for r in records],
        *([splits.by_path] if splits.by_path else []),
    )
    return IndexedSource(
        *("parquet", description, fingerprint, official, config.limits(), rng),
        notes=notes,
        unread=unread,
    )


# --- Files ----------------------------------------------------------------------------------------


def _find_tables(
    data_dir: str | None,
) -> tuple[Place, list[str], dict[str, Version], tuple[str, ...]]:
    """The data folder, the Parquet files in it in natural order, all that is in it, and notes."""
    if not data_dir:
        raise InputError("--data_dir is needed; give a folder of parquet files, or one file")
    place = place_at(data_dir)
    if place.is_file():
        return place.parent, [place.name], {}, ()
    if not place.is_dir():
        raise InputError(
            f"--data_dir {data_dir} does not exist; give a folder of parquet files, or one file"
        )
    place, notes = current_snapshot(place)
    listed = list_files(place)
    found = (name for name in listed if name.lower().endswith(TABLE_SUFFIXES))
    names = sorted(found, key=natural_order)
    if not names:
        others = {"webdataset": (".tar",), "folder": IMAGE_SUFFIXES, "hf": (".arrow",)}
        raise InputError(
            f"--data_dir {data_dir} holds no *.parquet file; give a folder that does"
            + what_it_holds(listed, others)
        )
    for name in names:
        if leads_out(place, name):
            raise InputError(
                f"--data_dir {data_dir}: {storable_name(name)} leads out of the folder; "
                "put a copy in its place"
            )
    return place, names, listed, notes


def _left_out(n_damaged: int, n_broken: int) -> list[str]:
    """How many files are not read, a phrase for each reason."""
    counts = {"damaged file": n_damaged, "unreadable file": n_broken}
    return [f"{n:,} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n]


def _check_addresses(
    tables: Sequence[_Table], images: _Images, listed: Collection[str], config: DataConfig
) -> None:
    """Refuse tables of addresses of which not a single image is in the folder."""
    if any(table.layout.data for table in tables):
        return
    paths = [(table, row) for table in tables for row, path in enumerate(table.paths) if path]
    addresses = (t.paths[row] for t, row in paths if (t.paths[row] or "").startswith("http"))
    first = next(addresses, None)
    if first is not None and not any(images.member(*path) in listed for path in paths):
        raise InputError(
            f"--data_dir {config.data_dir}: images are named by addresses such as {first[:100]}; "
            "download them with img2dataset and give its folder"
        )


# --- Columns --------------------------------------------------------------------------------------


def _find_layout(schema: Any, path: Place, config: DataConfig) -> _Layout:
    """The columns to read.

    Raises:
        InputError: there is no such column, or it holds something else.
    """
    names = schema.names
    columns = find_columns(names, config)
    if columns is None:
        raise _no_column(names, path, config)
    for flag, column in (("image", columns.image), ("caption", columns.captions[0])):
        if names.count(column) != 1:
            raise InputError(
                f"--{flag}_column {column}: several such columns in {path}; there are "
                f"{', '.join(names)}"
            )
    data, paths = _image_leaves(schema.field(columns.image).type, columns.image)
    if not data and not paths:
        raise _wrong_type("image_column", columns.image, schema, path, "image files or their paths")
    for caption in columns.captions:
        if not _holds_captions(schema.field(caption).type):
            raise _wrong_type("caption_column", caption, schema, path, "text or lists of text")
    ids = [config.id_column] if names.count(config.id_column) == 1 else []
    for name in ids:
        id_type = plain_type(schema.field(name).type)
        if not (pa.types.is_integer(id_type) or is_text(id_type)):
            raise _wrong_type("id_column", name, schema, path, "text or whole numbers")
    split = columns.split
    split_names: tuple[str, ...] = ()
    if split is not None and not is_text(plain_type(schema.field(split).type)):
        split_names = _class_names(schema, split)
        split = split if split_names else None
    has_uids = names.count(UID_COLUMN) == 1 and is_text(plain_type(schema.field(UID_COLUMN).type))
    return _Layout(
        *(data, paths, columns.captions, tuple(ids), (UID_COLUMN,) if has_uids else ()),
        (split,) if split is not None else (),
        replace(columns, split=split),
        split_names,
    )


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """What the numbers of a column stand for by the features that `datasets` keeps in a schema."""
    try:
        kept = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = kept["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else ()


def _no_column(names: Sequence[str], path: Place, config: DataConfig) -> InputError:
    """What a table without images or captions by their names lacks, and what may help."""
    has_images = find_columns([*names, "\0"], replace(config, caption_column="\0")) is not None
    flag = "caption_column" if has_images else "image_column"
    problem = f"--{flag} {getattr(config, flag)}: no such column in {path}"
    there = f"; there are {', '.join(names)}"
    if flag == "image_column" and first_known(URL_COLUMNS, names) is not None:
        return InputError(
            f"{problem}, which has the images' addresses alone; download them with img2dataset "
            f"and give its folder{there}"
        )
    return InputError(problem + there)


def _wrong_type(flag: str, column: str, schema: Any, path: Place, needed: str) -> InputError:
    found = str(schema.field(column).type)[:80]
    return InputError(
        f"--{flag} {column} holds {found} in {path}, not {needed}; name another column"
    )


def _holds_captions(arrow_type: Any) -> bool:
    """Whether a type is text, an object with a text in it, or a list of either."""
    plain = plain_type(arrow_type)
    if is_list(plain):
        plain = plain_type(plain.value_type)
    if pa.types.is_struct(plain):
        kinds = {field.name.casefold(): plain_type(field.type) for field in plain}
        texts = {
            name
            for name, kind in kinds.items()
            if is_text(plain_type(kind.value_type) if is_list(kind) else kind)
        }
        return not texts.isdisjoint(TEXT_FIELDS)
    return is_text(plain)


def _image_leaves(arrow_type: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where the bytes and where the paths of an image column are; both empty in any other.

    A list of either is looked into row by row, and so counts as bytes.
    """
    plain = plain_type(arrow_type)
    if is_bytes(plain):
        return (name,), ()
    if is_text(plain):
        return (), (name,)
    if is_list(plain):
        return ((name,), ()) if any(_image_leaves(plain.value_type, name)) else ((), ())
    fields = {field.name: field.type for field in plain} if pa.types.is_struct(plain) else {}
    has_data = "bytes" in fields and is_bytes(fields["bytes"])
    has_paths = "path" in fields and is_text(fields["path"])
    return (name, "bytes") if has_data else (), (name, "path") if has_paths else ()


# --- Captions -------------------------------------------------------------------------------------


def _read_table(root: Place, name: str, config: DataConfig) -> _Table:
    """A file's captions and names; its images are not touched.

    Raises:
        InputError: it lacks a column.
        pa.ArrowException: it is damaged; so may any other of `DAMAGE`.
    """
    file = open_file(root, name)
    try:
        layout = _find_layout(file.schema_arrow, root / name, config)
        if layout.path and not layout.data and _is_base64(file, layout.path):
            layout = replace(layout, data=layout.path, path=())
        table = _Table(name, layout, [], [], [], [], [])
        leaves = (layout.id, layout.uid, layout.path, layout.split)
        columns = [*layout.captions, *(".".join(leaf) for leaf in leaves if leaf)]
        for batch in file.iter_batches(TEXTS_AT_ONCE, columns=columns, use_threads=False):
            table.captions.extend(_captions(batch, layout.captions))
            table.ids.extend(_ids(batch, layout.id))
            table.uids.extend(datacomp_uid(text) for text in _texts(batch, layout.uid))
            table.paths.extend(_texts(batch, layout.path, "surrogateescape"))
            table.splits.extend(_split_names(batch, layout))
        n_rows = sum(group_sizes(file))
    finally:
        file.close(force=True)
    if len(table.captions) != n_rows:
        raise pa.ArrowInvalid(f"{len(table.captions)} rows instead of {n_rows}")
    return table


def _split_names(batch: Any, layout: _Layout) -> list[str | None]:
    """What the column of splits holds, numbers as what they stand for."""
    if not layout.split_names:
        return _texts(batch, layout.split)
    names = dict(enumerate(layout.split_names))
    return [names.get(number) for number in plain_column(batch, layout.split).to_pylist()]


def _is_base64(file: Any, leaf: tuple[str, ...]) -> bool:
    """Whether the first texts of a column are images written out, not paths."""
    batches = file.iter_batches(N_LOOKED_AT, columns=[".".join(leaf)], use_threads=False)
    texts = [text for text in _texts(next(batches), leaf) if text] if file.metadata.num_rows else []
    return bool(texts) and all(map(looks_like_base64, texts))


def _captions(batch: Any, columns: Sequence[str]) -> Iterator[list[str | None]]:
    """The captions of every row; an empty list, like null, is one missing caption.

    Of several columns those count that hold one.
    """
    cells = [cell_values(plain_column(batch, (column,))) for column in columns]
    if len(cells) == 1:
        return (captions_in(value) for value in cells[0])
    rows = zip(*cells, strict=True)
    filled = ([value for value in row if value is not None and value != ""] for row in rows)
    return ([text for value in row or [None] for text in captions_in(value)] for row in filled)


def _ids(batch: Any, leaf: tuple[str, ...]) -> list[str | None]:
    if not leaf or is_text(plain_column(batch, leaf).type):
        return _texts(batch, leaf, "backslashreplace")
    return [
        None if number is None else str(number) for number in plain_column(batch, leaf).to_pylist()
    ]


def _texts(batch: Any, leaf: tuple[str, ...], errors: str = "replace") -> list[str | None]:
    return cell_texts(plain_column(batch, leaf), errors) if leaf else [None] * batch.num_rows


# --- Images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Splits:
    """The split of every row, table by table.

    Attributes:
        of: as the column names it, else the file, else the path of the image, else training.
        by_path: those that only paths of images tell, by their paths.
        notes: what was found, a phrase each.
    """

    of: list[list[str]]
    by_path: dict[str, str]
    notes: list[str]


def _find_splits(tables: Sequence[_Table], images: _Images) -> _Splits:
    named: Counter[str | None] = Counter()
    unknown: Counter[str] = Counter()
    silent = [table for table in tables if split_from_path(table.path) is None]
    by_path = splits_of_paths(
        {images.member(table, row) for table in silent for row in range(len(table.paths))} - {""}
    )
    found: list[list[str]] = []
    for table in tables:
        of_file, splits = split_from_path(table.path), []
        for row, own in enumerate(table.splits):
            of_row = official_split(own) if own else None
            if own and of_row is None:
                unknown[own] += 1
            named[of_row] += 1
            of_path = by_path.get(images.member(table, row)) if by_path else None
            splits.append(of_row or of_file or of_path or "train")
        found.append(splits)
    columns = (table.layout.columns.split for table in tables)
    column = next(filter(None, columns), SPLIT_COLUMN)
    notes = column_notes(column, named, unknown, "rows")
    notes += path_notes(by_path)
    return _Splits(found, by_path, notes)


def _group_rows(
    tables: Sequence[_Table], splits: Sequence[Sequence[str]], images: _Images
) -> dict[str, list[ImageRecord]]:
    """Images by split, rows with the same id in the same split taken together."""
    first: dict[tuple[str, str], tuple[_Table, int]] = {}
    captions: dict[tuple[str, str], list[Caption]] = {}
    position = 0
    for table, of_rows in zip(tables, splits, strict=True):
        stem = storable_name(table.path).removesuffix(".parquet")
        for row, (texts, name, split) in enumerate(
            zip(table.captions, table.ids, of_rows, strict=True)
        ):
            image = (split, f"{stem}/{row}" if name is None else f"{split}/{name}")
            is_beside = first.setdefault(image, (table, row))[0] is table
            for text in texts:
                caption = Caption(position, text, row=row if is_beside else -1)
                captions.setdefault(image, []).append(caption)
                position += 1
    official: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    for (split, key), (table, row) in first.items():
        record = ImageRecord(
            key,
            partial(images.read, table, row),
            tuple(captions[split, key]),
            shard=storable_name(table.path),
            member=images.member(table, row),
            uid=table.uids[row],
        )
        official[split].append(record)
    return official


class _Images:
    """The images of rows: in the tables, or in files that these name."""

    def __init__(self, root: Place, locator: Locator) -> None:
        self.locator, self._cells = locator, ImageCells(root)

    def plan(self, tables: Iterable[_Table]) -> None:
        """Find all the files that tables name in the place of images."""
        self.locator.plan(
            Asked(path, posixpath.dirname(table.path))
            for table in tables
            if not table.layout.data
            for path in table.paths
            if path
        )

    def read(self, table: _Table, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            UnusableImage: the table is damaged there, the image far too large or out of the folder.
            OSError: it cannot be read.
        """
        leaf = table.layout.data
        found = self._cells.read(table.path, leaf, row) if leaf else None
        if isinstance(found, bytes):
            return found
        path = found or table.paths[row]
        if not path:
            raise UnusableImage(MISSING_FILE, "no image in this row")
        return self.locator.read(self._locate(table, path))

    def member(self, table: _Table, row: int) -> str:
        """The path of an image: from the data folder, beside bytes as it is written."""
        path = table.paths[row] or ""
        return storable_name(path if table.layout.data or not path else self._locate(table, path))

    def _locate(self, table: _Table, path: str) -> str:
        """A path from the data folder: seen from the table's folder, else from the data folder."""
        return self.locator.find(path, posixpath.dirname(table.path))
