"""Pairs in Parquet files: images as bytes or as paths in one column, captions in another.

Captions are read at once, images when they are asked for. Threads ask in nearly increasing order
of rows, so a file is decoded from front to back and a few rows at a time, however large its row
groups are. Layouts: img2dataset's `jpg` and `caption`, the Hub's struct of `bytes` and `path`, and
paths of image files. The format: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from artifacts.settings import InputError
from sources.arrow import (
    cell_text_lists,
    cell_texts,
    is_bytes,
    is_list,
    is_text,
    plain_column,
    plain_type,
)
from sources.base import (
    FILE_TOO_LARGE,
    MAX_FILE_BYTES,
    MISSING_FILE,
    SPLITS,
    Caption,
    DataConfig,
    ImageRecord,
    UnusableImage,
    datacomp_uid,
)
from sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, choose_column
from sources.paths import (
    clean_path,
    file_version,
    leads_out,
    list_files,
    natural_order,
    read_file,
    split_from_path,
    storable_name,
)
from sources.splits import IndexedSource, digest

logger = logging.getLogger(__name__)
DAMAGED_TABLE = "damaged table"

UID_COLUMN = "uid"
TEXTS_AT_ONCE = 2**14  # rows of captions
IMAGES_AT_ONCE = 32  # rows, fewer where their mean size makes more than
BYTES_AT_ONCE = 2**24
BATCHES_KEPT = 8  # for threads that ask a little late, fewer where they make more than
BYTES_KEPT = 2**28
MAX_OPEN_FILES = 4
MAX_OPEN_GROUPS = 2  # of a file
BUFFER_BYTES = 2**20  # a column is read in such pieces; without a buffer a row group at a time

# What damaged bytes make Arrow and its wrappers raise; InputError is a ValueError too.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError)


@dataclass(frozen=True)
class _Layout:
    """Where one file holds what: a column, or a column and its field; empty without one."""

    data: tuple[str, ...]
    path: tuple[str, ...]
    caption: tuple[str, ...]
    id: tuple[str, ...]
    uid: tuple[str, ...]


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
    """

    path: str
    layout: _Layout
    captions: list[list[str | None]]
    ids: list[str | None]
    uids: list[str]
    paths: list[str | None]


def open_parquet(config: DataConfig, rng: np.random.Generator) -> IndexedSource:
    """The pairs of a folder of Parquet files, or of one file.

    Damaged files are left out with a warning. Rows with the same id in the same split are one
    image, that of the first of them; a caption from another file than that row has no row number.

    Raises:
        InputError: no such folder or file, no readable table in it, or a table without the columns.
    """
    root, names, listed = _find_tables(config.data_dir)
    tables, problems = [], []
    for name in tqdm(names, desc="parquet files", unit="file", disable=None, leave=False):
        try:
            tables.append(_read_table(root, name, config))
        except InputError:
            raise
        except _DAMAGE as error:
            problems.append(_problem(error))
            path = storable_name(str(root / name))
            logger.warning("%s is damaged or no Parquet file; left out: %s", path, problems[-1])
    if not any(table.captions for table in tables):
        problem = f"none can be read ({problems[0]})" if not tables else "they have no rows"
        raise InputError(f"--data_dir {config.data_dir}: {len(names):,} parquet files, {problem}")
    images = _ImageReader(root, listed)
    official = _group_rows(tables, images)
    records = [record for split in SPLITS for record in official[split]]
    n_pairs = sum(len(record.captions) for record in records)
    description = f"{len(tables):,} parquet files in {config.data_dir}: "
    description += f"{len(records):,} images, {n_pairs:,} captions"
    description += _columns_note(tables, config)
    if problems:
        description += f", {len(problems):,} damaged files left out"
    versions = {storable_name(name): version for name, version in listed.items()}
    fingerprint = digest(
        "parquet",
        [
            (table.path, vars(table.layout), file_version((root / table.path).stat()))
            for table in tables
        ],
        [(r.key, versions.get(r.member), [c.text for c in r.captions]) for r in records],
    )
    return IndexedSource("parquet", description, fingerprint, official, config.limits(), rng)


# --- Files ----------------------------------------------------------------------------------------


def _find_tables(data_dir: str | None) -> tuple[Path, list[str], dict[str, tuple[int, int]]]:
    """The data folder, the Parquet files in it in natural order, and what else is listed in it."""
    if not data_dir:
        raise InputError("--data_dir is needed; give a folder of parquet files, or one file")
    place = Path(data_dir)
    if place.is_file():
        return place.parent, [place.name], {}
    if not place.is_dir():
        raise InputError(
            f"--data_dir {data_dir} does not exist; give a folder of parquet files, or one file"
        )
    listed = list_files(place)
    names = sorted((name for name in listed if name.endswith(".parquet")), key=natural_order)
    if not names:
        raise InputError(f"--data_dir {data_dir} holds no *.parquet file; give a folder that does")
    for name in names:
        if leads_out(place, name):
            raise InputError(
                f"--data_dir {data_dir}: {storable_name(name)} leads out of the folder; "
                "put a copy in its place"
            )
    return place, names, listed


def _open_file(path: Path) -> Any:
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{storable_name(path.name)} is no file")
    source = pa.OSFile(os.fsencode(path))
    return pq.ParquetFile(
        source,
        buffer_size=BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # of pages that have one
        arrow_extensions_enabled=False,
    )


def _group_sizes(file: Any) -> list[int]:
    """Rows of each row group."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) != file.metadata.num_rows:
        raise pa.ArrowInvalid(f"row groups do not make {file.metadata.num_rows} rows")
    return sizes


def _problem(error: BaseException) -> str:
    """The first line of what is wrong, which every run words alike."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return re.sub("0x[0-9a-fA-F]+", "0x?", text)[:200]


# --- Columns --------------------------------------------------------------------------------------


def _find_layout(schema: Any, path: Path, config: DataConfig) -> _Layout:
    """The columns to read.

    Raises:
        InputError: there is no such column, or it holds something else.
    """
    names = schema.names
    image = _choose_column("image_column", config.image_column, IMAGE_COLUMNS, names, path)
    caption = _choose_column("caption_column", config.caption_column, CAPTION_COLUMNS, names, path)
    data, paths = _image_leaves(schema.field(image).type, image)
    if not data and not paths:
        raise _wrong_type("image_column", image, schema, path, "image files or their paths")
    if not _holds_captions(schema.field(caption).type):
        raise _wrong_type("caption_column", caption, schema, path, "text or lists of text")
    ids = [config.id_column] if names.count(config.id_column) == 1 else []
    for name in ids:
        id_type = plain_type(schema.field(name).type)
        if not (pa.types.is_integer(id_type) or is_text(id_type)):
            raise _wrong_type("id_column", name, schema, path, "text or whole numbers")
    has_uids = names.count(UID_COLUMN) == 1 and is_text(plain_type(schema.field(UID_COLUMN).type))
    return _Layout(data, paths, (caption,), tuple(ids), (UID_COLUMN,) if has_uids else ())


def _choose_column(
    flag: str, named: str, known: Sequence[str], names: Sequence[str], path: Path
) -> str:
    """The column that a flag names; where it has its default, the first known one."""
    column = choose_column(named, getattr(DataConfig, flag), known, names) or named
    n_found = list(names).count(column)
    if n_found != 1:
        raise InputError(
            f"--{flag} {column}: {'several such columns' if n_found else 'no such column'} in "
            f"{path}; there are {', '.join(names)}"
        )
    return column


def _columns_note(tables: Iterable[_Table], config: DataConfig) -> str:
    """Which columns were found where those of the flags were not there."""
    layouts = [table.layout for table in tables]
    found = dict.fromkeys(((x.data or x.path)[0], x.caption[0]) for x in layouts)
    if set(found) == {(config.image_column, config.caption_column)}:
        return ""
    columns = " or ".join(f"{image} and {caption}" for image, caption in found)
    return f", in the columns {storable_name(columns)}"


def _wrong_type(flag: str, column: str, schema: Any, path: Path, needed: str) -> InputError:
    found = str(schema.field(column).type)[:80]
    return InputError(
        f"--{flag} {column} holds {found} in {path}, not {needed}; name another column"
    )


def _holds_captions(arrow_type: Any) -> bool:
    plain = plain_type(arrow_type)
    return is_text(plain) or (is_list(plain) and is_text(plain.value_type))


def _image_leaves(arrow_type: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where the bytes and where the paths of an image column are; both empty in any other."""
    plain = plain_type(arrow_type)
    if is_bytes(plain):
        return (name,), ()
    if is_text(plain):
        return (), (name,)
    fields = {field.name: field.type for field in plain} if pa.types.is_struct(plain) else {}
    has_data = "bytes" in fields and is_bytes(fields["bytes"])
    has_paths = "path" in fields and is_text(fields["path"])
    return (name, "bytes") if has_data else (), (name, "path") if has_paths else ()


# --- Captions -------------------------------------------------------------------------------------


def _read_table(root: Path, name: str, config: DataConfig) -> _Table:
    """A file's captions and names; its images are not touched.

    Raises:
        InputError: it lacks a column.
        pa.ArrowException: it is damaged; so may any other of `_DAMAGE`.
    """
    file = _open_file(root / name)
    try:
        layout = _find_layout(file.schema_arrow, root / name, config)
        table = _Table(name, layout, [], [], [], [])
        leaves = (layout.caption, layout.id, layout.uid, layout.path)
        columns = [".".join(leaf) for leaf in leaves if leaf]
        for batch in file.iter_batches(TEXTS_AT_ONCE, columns=columns, use_threads=False):
            table.captions.extend(_captions(plain_column(batch, layout.caption)))
            table.ids.extend(_ids(batch, layout.id))
            table.uids.extend(datacomp_uid(text) for text in _texts(batch, layout.uid))
            table.paths.extend(_texts(batch, layout.path, "surrogateescape"))
        n_rows = sum(_group_sizes(file))
    finally:
        file.close(force=True)
    if len(table.captions) != n_rows:
        raise pa.ArrowInvalid(f"{len(table.captions)} rows instead of {n_rows}")
    return table


def _captions(cells: Any) -> list[list[str | None]]:
    """The captions of every row; an empty list, like null, is one missing caption."""
    if is_list(cells.type):
        return [captions or [None] for captions in cell_text_lists(cells)]
    return [[text] for text in cell_texts(cells)]


def _ids(batch: Any, leaf: tuple[str, ...]) -> list[str | None]:
    if not leaf or is_text(plain_column(batch, leaf).type):
        return _texts(batch, leaf, "backslashreplace")
    return [
        None if number is None else str(number) for number in plain_column(batch, leaf).to_pylist()
    ]


def _texts(batch: Any, leaf: tuple[str, ...], errors: str = "replace") -> list[str | None]:
    return cell_texts(plain_column(batch, leaf), errors) if leaf else [None] * batch.num_rows


# --- Images ---------------------------------------------------------------------------------------


def _group_rows(tables: Iterable[_Table], images: _ImageReader) -> dict[str, list[ImageRecord]]:
    """Images by split, rows with the same id in the same split taken together."""
    first: dict[tuple[str, str], tuple[_Table, int]] = {}
    captions: dict[tuple[str, str], list[Caption]] = {}
    position = 0
    for table in tables:
        split = split_from_path(table.path) or "train"
        stem = storable_name(table.path).removesuffix(".parquet")
        for row, (texts, name) in enumerate(zip(table.captions, table.ids, strict=True)):
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


class _ImageReader:
    """Reads images of the rows of tables, from several threads, fastest in the order of rows."""

    def __init__(self, root: Path, listed: Mapping[str, object]) -> None:
        """Nothing is read yet.

        Args:
            root: the data folder.
            listed: the files in it, by path.
        """
        self._root, self._listed = root, listed
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _ImageColumn] = OrderedDict()  # the last used stands last

    def read(self, table: _Table, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            UnusableImage: the table is damaged there, the image far too large or out of the folder.
            OSError: it cannot be read.
        """
        data = self._cell(table, row).as_buffer() if table.layout.data else None
        if data is None:
            path = table.paths[row]
            if not path:
                raise UnusableImage(MISSING_FILE, "no image in this row")
            return read_file(self._root, self._locate(table, path))
        if data.size > MAX_FILE_BYTES:
            raise UnusableImage(FILE_TOO_LARGE, f"{data.size:,} bytes")
        return bytes(data.to_pybytes())

    def member(self, table: _Table, row: int) -> str:
        """The path of an image: from the data folder, beside bytes as it is written."""
        path = table.paths[row] or ""
        return storable_name(path if table.layout.data else self._locate(table, path))

    def _locate(self, table: _Table, path: str) -> str:
        """A path from the data folder: seen from the table's folder, else from the data folder."""
        path = clean_path(path)
        beside = clean_path(posixpath.join(posixpath.dirname(table.path), path)) if path else ""
        return path if beside not in self._listed and path in self._listed else beside

    def _cell(self, table: _Table, row: int) -> Any:
        with self._lock:
            if table.path not in self._open:
                try:
                    column = _ImageColumn(self._root / table.path, table.layout.data)
                except OSError:  # it was moved, or the system opens no more files
                    raise
                except _DAMAGE as error:
                    raise UnusableImage(DAMAGED_TABLE, _problem(error)) from error
                self._open[table.path] = column
            self._open.move_to_end(table.path)
            while len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            return self._open[table.path].cell(row)


@dataclass
class _Cursor:
    """How far a row group is decoded: the next row, and what decodes it and those that follow."""

    next: int
    batches: Iterator[Any]


class _ImageColumn:
    """The binary cells of one file, decoded from front to back; the last ones are kept.

    A row behind them is reached from the start of its row group, and row groups without a row that
    is asked for are not touched. The row group before is held open, because one thread may be in
    the next while another still wants the end of this. Held at a time are a page of each, which
    the writer chose, and `BATCHES_KEPT` batches.
    """

    def __init__(self, path: Path, leaf: tuple[str, ...]) -> None:
        self._leaf = leaf
        self._file = _open_file(path)
        self._starts = np.cumsum([0, *_group_sizes(self._file)])
        self._kept: deque[tuple[int, Any]] = deque()  # first row, cells
        self._lost: dict[int, tuple[int, str]] = {}  # by row group: first row, problem
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()  # by row group, last used last

    def close(self) -> None:
        """Let go of the file and of what was decoded."""
        self._cursors.clear()
        self._kept.clear()
        self._file.close(force=True)

    def cell(self, row: int) -> Any:
        """The binary scalar of a row.

        Raises:
            UnusableImage: the row group is damaged there or before.
        """
        found = self._recall(row)
        if found is not None:
            return found
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group in self._lost and row >= self._lost[group][0]:
            raise UnusableImage(DAMAGED_TABLE, self._lost[group][1])
        if group not in self._cursors or row < self._cursors[group].next:
            self._cursors[group] = _Cursor(int(self._starts[group]), self._decode(group))
        self._cursors.move_to_end(group)
        if len(self._cursors) > MAX_OPEN_GROUPS:
            self._cursors.popitem(last=False)
        while found is None:
            self._decode_on(group)
            found = self._recall(row)
        return found

    def _recall(self, row: int) -> Any:
        for first, cells in reversed(self._kept):
            if first <= row < first + len(cells):
                return cells[row - first]
        return None

    def _decode_on(self, group: int) -> None:
        cursor = self._cursors[group]
        try:
            cells = next(cursor.batches, None)
            if cells is None:
                raise pa.ArrowInvalid(f"row group {group} ends early")
        except _DAMAGE as error:
            problem = _problem(error)
            self._lost[group] = (cursor.next, problem)
            del self._cursors[group]
            raise UnusableImage(DAMAGED_TABLE, problem) from error
        self._kept.append((cursor.next, cells))
        cursor.next += len(cells)
        while len(self._kept) > 1 and (
            len(self._kept) > BATCHES_KEPT
            or sum(cells.nbytes for _, cells in self._kept) > BYTES_KEPT
        ):
            self._kept.popleft()

    def _decode(self, group: int) -> Iterator[Any]:
        """Cells of a row group, batch by batch."""
        column = ".".join(self._leaf)
        # Of all columns: what damaged bytes say of a single one can end the interpreter.
        rows = self._file.metadata.row_group(group)
        n_rows = BYTES_AT_ONCE * rows.num_rows // max(1, rows.total_byte_size)
        n_rows = int(np.clip(n_rows, 1, IMAGES_AT_ONCE))
        batches = self._file.iter_batches(
            n_rows, row_groups=[group], columns=[column], use_threads=False
        )
        for batch in batches:
            cells = plain_column(batch, self._leaf)
            cells.validate(full=True)
            yield cells
