"""Images in Parquet files, read by row from several threads, fastest in the order of rows.

Threads ask in nearly increasing order of rows, so a file is decoded from front to back and a few
rows at a time, however large its row groups are.
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sources.arrow import file_of, plain_column
from sources.base import (
    FILE_TOO_LARGE,
    MAX_FILE_BYTES,
    SEVERAL_IMAGES,
    UNREADABLE_FILE,
    UnusableImage,
)
from sources.image_files import HEAD_BYTES, from_base64, is_lfs_pointer
from sources.paths import has_file, open_plainly, storable_name
from sources.places import BrokenReadError, Place, StorageGoneError

DAMAGED_TABLE = "damaged table"
IMAGES_AT_ONCE = 32  # rows, fewer where their mean size makes more than
BYTES_AT_ONCE = 2**24
BATCHES_KEPT = 8  # for threads that ask a little late, fewer where they make more than
BYTES_KEPT = 2**28
MAX_OPEN_FILES = 4
MAX_OPEN_GROUPS = 2  # of a file
REMOTE_BUFFER_BYTES = 2**23  # the same of an address, where every piece is waited for
BUFFER_BYTES = 2**20  # a column is read in such pieces; without a buffer a row group at a time

# What damaged bytes make Arrow and its wrappers raise; InputError is a ValueError too.
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError)


# --- Files ----------------------------------------------------------------------------------------


def open_file(root: Place, name: str) -> Any:
    """A Parquet file under a folder, opened so that little of it is held at a time."""
    if not has_file(root, name):  # a pipe would be waited for
        raise FileNotFoundError(f"{storable_name(posixpath.basename(name))} is no file")
    with open_plainly(root, name) as file:
        if is_lfs_pointer(file.read(HEAD_BYTES)):
            raise pa.ArrowInvalid("a pointer of Git LFS; git lfs pull fetches the file")
    source = file_of(root, name)
    is_local = isinstance(source, str)
    return pq.ParquetFile(
        pa.OSFile(os.fsencode(source)) if is_local else source,
        buffer_size=BUFFER_BYTES if is_local else REMOTE_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # of pages that have one
        arrow_extensions_enabled=False,
    )


def group_sizes(file: Any) -> list[int]:
    """Rows of each row group."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) != file.metadata.num_rows:
        raise pa.ArrowInvalid(f"row groups do not make {file.metadata.num_rows} rows")
    return sizes


def problem_of(error: BaseException) -> str:
    """The first line of what is wrong, which every run words alike."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return re.sub("0x[0-9a-fA-F]+", "0x?", text)[:200]


# --- Images ---------------------------------------------------------------------------------------


class ImageCells:
    """The image cells of the files of a folder; a few files are open at a time."""

    def __init__(self, root: Place) -> None:
        """Nothing is read yet; `root` is the data folder."""
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[str, ImageColumn] = OrderedDict()  # the last used stands last

    def read(self, file: str, leaf: tuple[str, ...], row: int) -> bytes | str | None:
        """The bytes of an image, else the path that stands in its place, or None.

        Args:
            file: path from the data folder.
            leaf: column, or column and field.
            row: of the file.

        Raises:
            UnusableImage: the table is damaged there, the image far too large or one of several.
            OSError: the file cannot be read.
        """
        return image_in(self._cell(file, leaf, row))

    def _cell(self, file: str, leaf: tuple[str, ...], row: int) -> Any:
        with self._lock:
            if file not in self._open:
                try:
                    column = ImageColumn(self._root, file, leaf)
                except (
                    StorageGoneError,
                    OSError,
                ):  # it was moved, or the system opens no more files
                    raise
                except DAMAGE as error:
                    raise UnusableImage(DAMAGED_TABLE, problem_of(error)) from error
                self._open[file] = column
            self._open.move_to_end(file)
            while len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            return self._open[file].cell(row)


def image_in(cell: Any) -> bytes | str | None:
    """What a scalar of an image column holds: bytes, those in base64 or in a list of one, a path.

    Raises:
        UnusableImage: it is far too large, no base64, or one of several.
    """
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        if len(cell.values) > 1:
            raise UnusableImage(SEVERAL_IMAGES, f"{len(cell.values):,} of them")
        return image_in(cell.values[0]) if len(cell.values) else None
    if isinstance(cell, pa.StructScalar):
        fields = (cell[name] for name in ("bytes", "path") if name in cell)
        return next((found for field in fields if (found := image_in(field)) is not None), None)
    data = cell.as_buffer()
    if data.size > MAX_FILE_BYTES:
        raise UnusableImage(FILE_TOO_LARGE, f"{data.size:,} bytes")
    content = bytes(data.to_pybytes())
    if isinstance(cell, pa.StringScalar | pa.LargeStringScalar | pa.StringViewScalar):
        return from_base64(content) or content.decode("utf-8", "surrogateescape")
    return content


@dataclass
class _Cursor:
    """How far a row group is decoded: the next row, and what decodes it and those that follow."""

    next: int
    batches: Iterator[Any]


class ImageColumn:
    """The image cells of one file, decoded from front to back; the last ones are kept.

    A row behind them is reached from the start of its row group, and row groups without a row that
    is asked for are not touched. The row group before is held open, because one thread may be in
    the next while another still wants the end of this. Held at a time are a page of each, which
    the writer chose, and `BATCHES_KEPT` batches.
    """

    def __init__(self, root: Place, name: str, leaf: tuple[str, ...]) -> None:
        self._leaf = leaf
        self._file = open_file(root, name)
        self._starts = np.cumsum([0, *group_sizes(self._file)])
        self._kept: deque[tuple[int, Any]] = deque()  # first row, cells
        self._lost: dict[int, tuple[int, str, str]] = {}  # by row group: first row, reason
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()  # by row group, last used last

    def close(self) -> None:
        """Let go of the file and of what was decoded."""
        self._cursors.clear()
        self._kept.clear()
        self._file.close(force=True)

    def cell(self, row: int) -> Any:
        """The scalar of a row.

        Raises:
            UnusableImage: the row group is damaged there or before.
        """
        found = self._recall(row)
        if found is not None:
            return found
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group in self._lost and row >= self._lost[group][0]:
            raise UnusableImage(*self._lost[group][1:])
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
        except DAMAGE as error:
            del self._cursors[group]
            if isinstance(error, StorageGoneError):
                raise
            reason = UNREADABLE_FILE if isinstance(error, BrokenReadError) else DAMAGED_TABLE
            self._lost[group] = (cursor.next, reason, problem_of(error))
            raise UnusableImage(*self._lost[group][1:]) from error
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
