"""Tables of separated values; the truth is written beside each text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.base import DataConfig
from sources.columns import find_columns
from sources.delimited import Table, read_header_table, read_headless_table


def fits(header: Sequence[str]) -> tuple[int, int] | None:
    columns = find_columns(header, DataConfig())
    return (
        None
        if columns is None
        else (header.index(columns.image), header.index(columns.captions[0]))
    )


def read(text: str) -> Table:
    table = read_header_table(text, fits)
    assert table is not None
    return table


def test_rows_keep_every_character() -> None:
    long = "x" * 200_000
    rows = [
        "file,caption,source",
        "a.png,red, green, blue,web",
        'b.png,"quoted, once",web',
        "c.png",
        "",
        f"d.png,{long},web",
    ]
    assert read("\n".join(rows)).rows == [
        ["a.png", "red, green, blue", "web"],
        ["b.png", "quoted, once", "web"],
        ["c.png", "", ""],
        ["d.png", long, "web"],
    ]
    assert read("caption,file\nred, green,a.png\nblue,b.png\n").rows == [
        ["red, green", "a.png"],
        ["blue", "b.png"],
    ]


def test_tables_without_a_header_keep_every_character() -> None:
    tabs = read_headless_table('a.JPG#12\t"Stop" , it\tsays .\n b.jpg \tno number')
    assert tabs == Table((), [["a.JPG", '"Stop" , it\tsays .'], ["b.jpg", "no number"]])
    commas = read_headless_table('a#1.webp,red, green\n"b.png","quoted, once"\nc.png\n')
    assert commas == Table(
        (), [["a#1.webp", "red, green"], ["b.png", "quoted, once"], ["c.png", ""]]
    )
    assert read_headless_table("a.pdf,x\n") is None
    assert read_headless_table("") is None


# --- Quotation marks ------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("at", [[0], [39], [5, 25], [7, 8, 9], [3, 20, 39]])
def test_a_stray_mark_swallows_no_row(delimiter: str, at: list[int]) -> None:
    captions = [f"{chr(34) if i in at else ''}Stop sign {i}" for i in range(40)]
    lines = [f"{i}.jpg{delimiter}{caption}" for i, caption in enumerate(captions)]
    table = read("\n".join([f"image{delimiter}caption", *lines]))
    assert table.rows == [[f"{i}.jpg", caption] for i, caption in enumerate(captions)]
    assert table.n_unquoted == len(at)
    headless = read_headless_table("\n".join(lines))
    assert headless is not None
    assert [row[1] for row in headless.rows] == captions


def test_a_stray_mark_among_real_ones() -> None:
    text = (
        "image,caption,web\n"
        '0.jpg,"a, b",x\n'
        '1.jpg,"stray,x\n'
        '2.jpg,"two\nlines, of ""it""",x\n'
        '3.jpg,"Stop" says it,x\n'
        '4.jpg,"He said \\"hi, you\\"",x\n'
        "5.jpg,the end,x\n"
    )
    table = read(text)
    assert table.rows == [
        ["0.jpg", "a, b", "x"],
        ["1.jpg", '"stray', "x"],
        ["2.jpg", 'two\nlines, of "it"', "x"],
        ["3.jpg", '"Stop" says it', "x"],
        ["4.jpg", 'He said "hi, you"', "x"],
        ["5.jpg", "the end", "x"],
    ]
    assert table.n_unquoted == 3


def test_files_may_have_names_that_tell_nothing() -> None:
    table = read('image,caption\n2300,"a\n2301,b\n2302,"two\nlines, of it"\n2303,d\n')
    assert table.rows == [
        ["2300", '"a'],
        ["2301", "b"],
        ["2302", "two\nlines, of it"],
        ["2303", "d"],
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters='\n\r",;'))


@given(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_what_is_written_by_the_rules_is_read_by_them(captions: list[str], delimiter: str) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["image", "caption"])
    writer.writerows([f"{i}.jpg", caption] for i, caption in enumerate(captions))
    table = read(buffer.getvalue())
    assert table.rows == [[f"{i}.jpg", caption] for i, caption in enumerate(captions)]
    assert table.n_unquoted == 0
