"""Columns of Arrow tables: what they hold, and their cells as text.

Arrow does not look whether what it calls text is UTF-8; what is not becomes U+FFFD here, and the
caption that holds it is damaged; see `captions.caption_fault`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sources.paths import real_path
from sources.places import Address, Place

PART_BYTES = 2**20  # read at once of a table that is read in parts

# --- What they hold -------------------------------------------------------------------------------


def value_type(arrow_type: Any) -> Any:
    """The type of the values that a dictionary stands for; any other type as it is."""
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def plain_type(arrow_type: Any) -> Any:
    """A type without the dictionary or the extension around it."""
    if isinstance(arrow_type, pa.BaseExtensionType):
        return plain_type(arrow_type.storage_type)
    if pa.types.is_dictionary(arrow_type):
        return plain_type(value_type(arrow_type))
    return arrow_type


def plain_column(batch: Any, leaf: tuple[str, ...]) -> Any:
    """One column of a batch, or one field of it, as an array of its plain type."""
    cells = batch.column(leaf[0])
    while isinstance(cells, pa.ExtensionArray | pa.DictionaryArray):
        is_coded = isinstance(cells, pa.DictionaryArray)
        cells = cells.dictionary_decode() if is_coded else cells.storage
    for field in leaf[1:]:
        cells = pc.struct_field(cells, field)
    return cells


def is_text(arrow_type: Any) -> bool:
    """Whether the type is text, or that of a column with nothing but nulls."""
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(arrow_type) for test in tests)


def is_bytes(arrow_type: Any) -> bool:
    """Whether the type is bytes of any length."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(arrow_type) for test in tests)


def is_list(arrow_type: Any) -> bool:
    """Whether the type is a list of anything."""
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(arrow_type) for test in tests)


# --- Files ----------------------------------------------------------------------------------------


def file_of(root: Place, name: str) -> Any:
    """A file under a folder, as Arrow opens it: a path, or what reads parts of it."""
    if isinstance(root, Address):
        return pa.PythonFile(root.open(name, PART_BYTES), mode="r")
    return real_path(root, name)


# --- Cells ----------------------------------------------------------------------------------------


def cell_texts(column: Any, errors: str = "replace") -> list[str | None]:
    """The cells of a column of texts or bytes; None where there is none.

    Args:
        column: array or chunked array.
        errors: what becomes of bytes that are no UTF-8, as in `bytes.decode`.

    Raises:
        pa.ArrowInvalid: the column is damaged.
    """
    data = column.cast(pa.large_binary())
    data.validate(full=True)
    return [None if cell is None else cell.decode("utf-8", errors) for cell in data.to_pylist()]


def cell_text_lists(column: Any) -> list[list[str | None] | None]:
    """The cells of a column of lists of texts; see `cell_texts`."""
    values = iter(cell_texts(pc.list_flatten(column)))
    lengths = pc.list_value_length(column).to_pylist()
    return [None if n is None else [next(values) for _ in range(n)] for n in lengths]


def cell_values(column: Any) -> list[Any]:
    """The cells of a column of any type; what is no UTF-8 in texts becomes U+FFFD."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return cell_text_lists(column) if is_list(column.type) else cell_texts(column)
    return found
