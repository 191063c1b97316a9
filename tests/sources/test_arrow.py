"""Columns of Arrow tables; the truth is what the tests put into them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from sources.arrow import (
    cell_text_lists,
    cell_texts,
    cell_values,
    is_bytes,
    is_list,
    is_text,
    plain_column,
    plain_type,
    value_type,
)

CODED = pa.dictionary(pa.int32(), pa.string())


def raw_texts(*cells: bytes | None) -> Any:
    """A column of texts of these bytes, UTF-8 or not."""
    data = pa.array(cells, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(data), data.buffers(), data.null_count)


def test_kinds_of_columns() -> None:
    texts = [pa.string(), pa.large_string(), pa.string_view(), pa.null()]
    data = [pa.binary(), pa.large_binary(), pa.binary_view()]
    lists = [pa.list_(pa.string()), pa.large_list(pa.int8()), pa.list_(pa.string(), 2)]
    others = [pa.int64(), pa.struct({"a": pa.string()}), CODED, pa.json_()]
    for kind in (*texts, *data, *lists, *others):
        assert (is_text(kind), is_bytes(kind), is_list(kind)) == (
            *(kind in texts, kind in data, kind in lists),
        )


def test_types_without_what_is_around_them() -> None:
    assert value_type(CODED) == plain_type(CODED) == pa.string()
    assert value_type(pa.json_()) == pa.json_()
    assert plain_type(pa.json_()) == pa.string()
    assert plain_type(pa.int8()) == value_type(pa.int8()) == pa.int8()


def test_plain_columns() -> None:
    documents = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2"]))
    parts = pa.array([{"bytes": b"x", "path": "p"}, {"bytes": None, "path": "q"}])
    columns = {"coded": pa.array(["a", "a"]).dictionary_encode(), "json": documents, "image": parts}
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    for leaf, cells in (
        (("coded",), ["a", "a"]),
        (("json",), ["1", "2"]),
        (("image", "bytes"), [b"x", None]),
    ):
        plain = plain_column(batch, leaf)
        assert plain.type == plain_type(plain.type)
        assert plain.to_pylist() == cells


@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_no_utf8_is_marked(chunked: bool) -> None:
    column = raw_texts("été".encode(), b"gr\xfcn", None, b"")
    assert cell_texts(pa.array(["a", None], pa.large_string())) == ["a", None]
    given = pa.chunked_array([column, column[:1]]) if chunked else column
    more = ["été"] if chunked else []
    assert cell_texts(given) == ["été", "gr\ufffdn", None, "", *more]
    assert cell_values(given) == ["été", "gr\ufffdn", None, "", *more]
    assert cell_texts(column, "surrogateescape")[1] == "gr\udcfcn"


@pytest.mark.parametrize("kind", [pa.ListArray, pa.LargeListArray])
def test_lists_of_texts(kind: Any) -> None:
    offsets = pa.array([0, 2, None, 2, 4], pa.int32() if kind is pa.ListArray else pa.int64())
    column = kind.from_arrays(offsets, raw_texts(b"a", b"\xff", None, b"b"))
    # An offset that is missing makes its list a missing one.
    expected: list[list[str | None] | None] = [["a", "\ufffd"], [], None, [None, "b"]]
    assert cell_text_lists(column) == expected
    assert cell_values(column) == expected


def test_cells_of_any_type_are_as_they_are() -> None:
    assert cell_values(pa.array([1, None])) == [1, None]
    assert cell_values(pa.array([["a"], []])) == [["a"], []]


def test_a_damaged_column_is_no_text() -> None:
    sizes = pa.array([0, 5, 3], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.string(), 2, [None, sizes, pa.py_buffer(b"abcde")])
    with pytest.raises(pa.ArrowInvalid):
        cell_texts(column)
