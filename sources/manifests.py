"""Manifests: tables of any kind that name images of a folder and their captions.

CSV, TSV and their kin with a header or without, JSON, JSON lines and Parquet, whatever they are
called. What a table is, its columns tell; see `columns`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.settings import InputError
from sources.arrow import cell_values, file_of, is_bytes, plain_type
from sources.base import OUTSIDE_FOLDER, DataConfig, UnusableImage
from sources.captions import captions_in
from sources.columns import SPLIT_COLUMNS, Columns, find_columns, first_known
from sources.delimited import (
    DELIMITERS,
    header_of,
    read_header_table,
    read_headless_table,
    without_number,
)
from sources.image_files import is_image_name
from sources.json_tables import read_lines, read_rows
from sources.paths import decode_text, leads_out, read_list, storable_name
from sources.places import BrokenReadError, Place, StorageGoneError

MAX_TABLE_BYTES = 2**29  # of captions, which are read whole
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".token", ".txt")
LINES_SUFFIXES = (".jsonl", ".ndjson")
NUMBER_COLUMN = "image_id"
N_SHOWN_COLUMNS = 8
MAX_SHOWN_NAME = 40  # characters of what stands in the place of a column's name
N_LOOKED_AT = 20  # rows that tell whether they hold captions


@dataclass(frozen=True, slots=True)
class Row:
    """What a manifest says of an image, or of one of its captions.

    Attributes:
        file: as it is written; "" where none is named.
        captions: at least one; None is a missing one.
        split: as it is written, or "".
        missing: why there is no image, where that is known; `file` is then a name for it.
    """

    file: str
    captions: tuple[str | None, ...]
    split: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Manifest:
    """The rows of one file.

    Attributes:
        name: path from the data folder.
        rows: empty where the file is no manifest.
        columns: those that are read; None where they have no names, or none fit.
        seen: names of the columns that there are.
        n_unquoted: rows whose quotation marks are not believed; see `delimited`.
        has_images: whether the images are in the file itself, which another source reads.
    """

    name: str
    rows: Sequence[Row]
    columns: Columns | None = None
    seen: tuple[str, ...] = ()
    n_unquoted: int = 0
    has_images: bool = False

    def notes(self) -> list[str]:
        """What was taken of it, a phrase each."""
        found = [self.columns.note()] if self.columns is not None else []
        if self.n_unquoted:
            rows = "row" if self.n_unquoted == 1 else "rows"
            found.append(
                f"{self.n_unquoted:,} {rows} of {storable_name(self.name)} with a stray quotation "
                "mark read as they stand"
            )
        return found

    def shown_columns(self) -> str:
        """Its name and columns, for an error."""
        more = ", ..." if len(self.seen) > N_SHOWN_COLUMNS else ""
        columns = ", ".join(self.seen[:N_SHOWN_COLUMNS]) + more
        return storable_name(f"{self.name} ({columns})" if columns else self.name)


def read_manifest(root: Place, name: str, config: DataConfig) -> Manifest:
    """A file as a manifest, without rows where it is none.

    Raises:
        InputError: it leads out of the folder, is far too large or damaged.
    """
    if name.lower().endswith(".parquet"):
        return _read_parquet(root, name, config)
    text = decode_text(read_table_file(root, name), root / name)
    if name.lower().endswith(LINES_SUFFIXES):
        is_list = text.lstrip("\ufeff \t\r\n").startswith("[")
        lines = (read_rows(text, root / name) or []) if is_list else read_lines(text, root / name)
        return _of_rows(name, lines, config)
    if name.lower().endswith(".json"):
        return _of_rows(name, read_rows(text, root / name) or [], config)
    return _read_delimited(name, text, config)


def read_table_file(root: Place, name: str) -> bytes:
    """The bytes of a table.

    Raises:
        InputError: it leads out of the folder, is far too large or cannot be read.
    """
    path = root / name
    try:
        return read_list(root, name, MAX_TABLE_BYTES)
    except UnusableImage as error:
        outside = error.reason == OUTSIDE_FOLDER
        remedy = "put a copy in its place" if outside else "use parquet files or tar shards"
        raise InputError(f"{path} cannot be used ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct it") from error


# --- Separated values -----------------------------------------------------------------------------


def _read_delimited(name: str, text: str, config: DataConfig) -> Manifest:
    def fits(header: Sequence[str]) -> tuple[int, int] | None:
        columns = find_columns(header, config) or _by_number(header, config)
        if columns is None:
            return None
        return header.index(columns.image), header.index(columns.captions[0])

    table = read_header_table(text, fits)
    if table is not None:
        some = [dict(zip(table.header, f, strict=True)) for f in table.rows[:N_LOOKED_AT]]
        columns = find_columns(table.header, config, some) or _by_number(table.header, config)
        assert columns is not None, "the header fits"
        at = {column: i for i, column in enumerate(table.header)}
        rows = [
            Row(
                _in_folder(
                    fields[at[columns.image]], columns.folder and fields[at[columns.folder]]
                ),
                _joined(fields[at[column]] for column in columns.captions),
                fields[at[columns.split]].strip() if columns.split else "",
            )
            for fields in table.rows
        ]
        return Manifest(name, rows, columns, table.header, table.n_unquoted)
    headless = read_headless_table(text)
    if headless is not None and not _are_pairs_of_images(headless.rows):
        rows = [Row(file, _joined(captions)) for file, *captions in headless.rows]
        return Manifest(name, rows, n_unquoted=headless.n_unquoted)
    first_line = text.lstrip().partition("\n")[0].strip()[:1000]
    headers = [header_of(first_line, delimiter) for delimiter in DELIMITERS]
    longest = sorted(headers, key=len)[-1]
    return Manifest(name, (), seen=tuple(column[:MAX_SHOWN_NAME] for column in longest))


def _in_folder(file: str, folder: object) -> str:
    """A file in the folder that another column names; that column's path where it holds one."""
    file = file.strip()
    if not isinstance(folder, str) or not folder.strip() or "://" in folder:
        return file
    folder = folder.strip()
    if is_image_name(folder):
        return folder
    return file if file.startswith(f"{folder}/") else posixpath.join(folder, file)


def _are_pairs_of_images(rows: Sequence[Sequence[str]]) -> bool:
    """Whether rows judge how well captions fit, by the names of two images, as Flickr8k's do."""
    texts = [re.split(r"[\s,;|]", row[1], maxsplit=1)[0] for row in rows[:N_LOOKED_AT]]
    return bool(texts) and all(is_image_name(without_number(text)) for text in texts)


def _joined(values: Iterable[object]) -> tuple[str | None, ...]:
    """The captions of every column; what several columns leave empty is none."""
    cells = list(values)
    if len(cells) == 1:
        return tuple(captions_in(cells[0]))
    cells = [cell for cell in cells if cell is not None and cell != ""] or [None]
    return tuple(text for cell in cells for text in captions_in(cell))


# --- Rows of named fields -------------------------------------------------------------------------


def _of_rows(name: str, rows: Sequence[Mapping[str, Any]], config: DataConfig) -> Manifest:
    """A manifest of objects, which need not all have the same fields."""

    @lru_cache(maxsize=256)
    def find(names: tuple[str, ...]) -> Columns | None:
        some = [row for row in rows[:N_LOOKED_AT] if row.keys() >= {*names}]
        return find_columns(names, config, some) or _by_number(names, config)

    found: list[Row] = []
    columns: Columns | None = None
    seen: dict[str, None] = {}
    unnamed = 0
    for row in rows:
        names = tuple(map(str, row))
        seen |= dict.fromkeys(names)
        here = find(names)
        if here is None:
            unnamed += 1
            found.append(_row_without_columns(row, columns))
            continue
        columns = columns or here
        captions = _joined(row.get(column) for column in here.captions)
        split = row.get(here.split) if here.split else ""
        file = _in_folder(_file_name(row[here.image]), row.get(str(here.folder)))
        found.append(Row(file, captions, split if isinstance(split, str) else ""))
    fits = columns is not None and unnamed < len(found)
    return Manifest(name, found if fits else (), columns, tuple(seen))


def _by_number(names: Sequence[str], config: DataConfig) -> Columns | None:
    """The columns where images go by their numbers alone."""
    number = first_known((NUMBER_COLUMN,), names)
    if number is None or config.image_column != DataConfig.image_column:
        return None
    return find_columns(names, replace(config, image_column=number))


def _row_without_columns(row: Mapping[str, Any], columns: Columns | None) -> Row:
    """A row that lacks a field which others have: no image, or no caption."""
    names = list(map(str, row))
    image = columns.image if columns and columns.image in names else None
    split = first_known(SPLIT_COLUMNS, names)
    named = row.get(split) if split else ""
    file = _file_name(row[image]) if image else ""
    return Row(file, (None,), named if isinstance(named, str) else "")


def _file_name(value: object) -> str:
    """The path of an image in a cell: a text, one in a list of one, or that of an object."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("path", "file_name", "url") if name in value), "")
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


# --- Parquet --------------------------------------------------------------------------------------


def _read_parquet(root: Place, name: str, config: DataConfig) -> Manifest:
    """The rows of a Parquet file whose images are paths; one with images in it is no manifest."""
    if leads_out(root, name):
        raise InputError(f"{root / name} cannot be used ({OUTSIDE_FOLDER}); put a copy there")
    try:
        source = file_of(root, name)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            names = tuple(file.schema_arrow.names)
            columns = find_columns(names, config)
            if columns is None:
                return Manifest(name, (), None, names)
            if _holds_images(file.schema_arrow, columns.image):
                return Manifest(name, (), columns, names, has_images=True)
            wanted = [columns.image, *columns.captions, *([columns.split] if columns.split else [])]
            table = file.read(columns=wanted, use_threads=False)
        cells = {column: cell_values(table.column(column)) for column in wanted}
    except BrokenReadError as error:
        raise InputError(f"{root / name}: {error}; run again") from error
    except StorageGoneError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError):
        return Manifest(name, ())  # damaged, or called like one
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return _of_rows(name, rows, config)


def _holds_images(schema: Any, column: str) -> bool:
    plain = plain_type(schema.field(column).type)
    fields = [plain_type(field.type) for field in plain] if pa.types.is_struct(plain) else [plain]
    return any(map(is_bytes, fields))
