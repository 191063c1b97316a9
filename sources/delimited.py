"""Tables of separated values: CSV, TSV and their kin, with a header or without.

A caption that begins with a quotation mark it does not end makes the rows below a part of itself,
by the rules of CSV (RFC 4180). A quoted field is therefore believed only as far as what it spans
does not look like rows; the line where it does is read as it stands, and counted.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sources.image_files import is_image_name
from sources.paths import unique_names

DELIMITERS = ",;\t|"
HEADLESS_DELIMITERS = "\t,;|"
N_SAMPLES = 20  # lines that tell what files are called
Row = list[str]


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        header: the columns' names, stripped; empty where the file has no header.
        rows: as many fields each as the header has names.
        n_unquoted: rows whose quotation marks end nowhere or in another row, read as they stand.
    """

    header: tuple[str, ...]
    rows: list[Row]
    n_unquoted: int = 0


def read_header_table(
    text: str, fits: Callable[[Sequence[str]], tuple[int, int] | None]
) -> Table | None:
    """A table whose header a caller can use.

    A row with more fields than the header holds a text with the delimiter in it, which is put
    together again.

    Args:
        text: of the file.
        fits: where in a header the file's column and the free text's are; None: it is of no use.

    Returns:
        The table, or None where no delimiter makes a header that fits.
    """
    text = re.sub(r"\A(?:\s*[\r\n])?(?:sep=.[\r\n]+)?", "", text)  # as Excel writes it
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for delimiter in DELIMITERS:
        header = header_of(first_line, delimiter)
        found = fits(header)
        if found is not None:
            break
    else:
        return None
    file_at, text_at = found
    table = _read_rows(text, delimiter, len(header), file_at)
    rows = [_fit(row, len(header), text_at, delimiter) for row in table.rows[1:]]
    return Table(tuple(unique_names(header)), rows, table.n_unquoted)


def header_of(line: str, delimiter: str) -> list[str]:
    """The fields of a first line, stripped."""
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def read_headless_table(text: str) -> Table | None:
    """(file, text) of every line "file, delimiter, text", as in Flickr8k.token.txt.

    The number of the caption that may follow the file's name, as in `1.jpg#0`, is left out. Where
    every line has as many tabs, more than one, they stand between texts; numbers are no texts.

    Returns:
        Rows, or None where the first line does not begin with the name of an image.
    """
    first_line = text.lstrip().split("\n", 1)[0]
    for delimiter in HEADLESS_DELIMITERS:
        file, found, _ = first_line.partition(delimiter)
        if found and is_image_name(without_number(file.strip('"'))):
            break
    else:
        return None
    if delimiter == "\t":  # it needs no quotes, and captions may hold any
        lines = (plain_fields(line, delimiter) for line in io.StringIO(text, newline=""))
        table = Table((), [row for row in lines if any(map(str.strip, row))])
        if len({len(row) for row in table.rows}) == 1 and len(table.rows[0]) > 2:
            texts = [[t for t in row[1:] if not t.strip().isdecimal()] for row in table.rows]
            files = [without_number(row[0]) for row in table.rows]
            return Table((), [[f, *(t or [""])] for f, t in zip(files, texts, strict=True)])
    else:
        table = _read_rows(text, delimiter, 2, 0)
    rows = [[without_number(row[0]), delimiter.join(row[1:])] for row in table.rows]
    return Table((), rows, table.n_unquoted)


def without_number(file: str) -> str:
    """A file's name without the number of a caption behind it."""
    return re.sub(r"#\d+$", "", file.strip())


def _fit(row: Row, n_fields: int, text_at: int, delimiter: str) -> Row:
    """A row with as many fields as the header, what the free text was torn into joined."""
    if len(row) == n_fields:
        return row
    while len(row) > n_fields and not row[-1].strip():
        row = row[:-1]
    row = row + [""] * (n_fields - len(row))
    extra = len(row) - n_fields
    text = delimiter.join(row[text_at : text_at + 1 + extra])
    return [*row[:text_at], text, *row[text_at + 1 + extra :]]


# --- Rows -----------------------------------------------------------------------------------------


def _read_rows(text: str, delimiter: str, n_fields: int, file_at: int) -> Table:
    """The rows that hold anything, the header among them."""
    csv.field_size_limit(2**31 - 1)
    lines = list(io.StringIO(text, newline=""))
    looks_like_row = _row_test(lines, delimiter, n_fields, file_at)
    rows: list[Row] = []
    n_unquoted = start = 0
    while start < len(lines):
        start = _read_quoted(lines, start, delimiter, looks_like_row, rows)
        if start < len(lines):
            rows.append(_unquoted(lines[start], delimiter, n_fields))
            n_unquoted += 1
            start += 1
    return Table((), [row for row in rows if any(map(str.strip, row))], n_unquoted)


def _read_quoted(
    lines: Sequence[str],
    start: int,
    delimiter: str,
    looks_like_row: Callable[[str], bool],
    rows: list[Row],
) -> int:
    """Append the rows from a line on; returns the line where quotation marks cannot be believed."""
    following = (lines[i] for i in range(start, len(lines)))
    reader = csv.reader(following, delimiter=delimiter, strict=True)
    first = start
    while True:
        try:
            row = next(reader, None)
        except csv.Error:  # marks that end in the middle of a field, or nowhere
            return first
        if row is None:
            return len(lines)
        end = start + reader.line_num
        if any(looks_like_row(lines[i]) for i in range(first + 1, end)):
            return first
        rows.append(row)
        first = end


def _unquoted(line: str, delimiter: str, n_fields: int) -> Row:
    """The fields of a line, marks behind backslashes taken for such, else all marks as they are."""
    try:
        row = next(csv.reader([line], delimiter=delimiter, escapechar="\\", strict=True))
    except csv.Error:
        row = []
    return row if len(row) == n_fields else plain_fields(line, delimiter)


def plain_fields(line: str, delimiter: str) -> Row:
    """The fields of a line in which quotation marks mean nothing."""
    return line.rstrip("\r\n").split(delimiter)


def _row_test(
    lines: Sequence[str], delimiter: str, n_fields: int, file_at: int
) -> Callable[[str], bool]:
    """What tells whether a line within a quoted field looks like a row of the table."""

    def file_in(line: str) -> str:
        fields = plain_fields(line, delimiter)
        if len(fields) < n_fields:
            return ""
        field = fields[file_at].strip()
        is_quoted = len(field) > 1 and field[0] == field[-1] == '"'
        return without_number(field[1:-1] if is_quoted else field)

    samples = [file for line in lines[1:N_SAMPLES] if (file := file_in(line))]
    shapes = Counter(map(_shape, samples)).most_common(1)
    usual = shapes[0][0] if shapes and not any(map(is_image_name, samples)) else None

    def looks_like_row(line: str) -> bool:
        file = file_in(line)
        return is_image_name(file) or (bool(file) and _shape(file) == usual)

    return looks_like_row


def _shape(file: str) -> str:
    """What files of the same kind have in common: digits and letters made one each."""
    return re.sub("[^\\W\\d_]+", "a", re.sub("[0-9]+", "0", file))
