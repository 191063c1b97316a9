"""A reviewer's say: pairs that are kept or dropped whatever their value, from a CSV file.

The report's page downloads such a file, with the columns id, decision, key and caption; the first
two are read. It may have been through a spreadsheet since.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from artifacts.provenance import json_bytes
from artifacts.settings import InputError
from curation import DROP, KEEP

ID, DECISION = "id", "decision"
WORDS: Mapping[str, int] = {"keep": KEEP, "drop": DROP}
DELIMITERS = ",;\t"  # a spreadsheet writes what its language is used to
DIGEST_DIGITS = 16  # enough to tell one review from another in a message
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as a spreadsheet's "Unicode text"
N_SHOWN = 3
MAX_SHOWN = 40  # characters of a cell in a message


class Row(NamedTuple):
    """A row that holds anything."""

    line: int  # of the file, from one
    cells: list[str]


@dataclass(frozen=True)
class Overrides:
    """What a reviewer has decided: KEEP or DROP by a pair's id, and the file that says so."""

    decisions: Mapping[str, int] = field(default_factory=dict)
    path: str = ""

    def settings(self) -> dict[str, str]:
        """What a result that obeys depends on: the decisions, whatever their file is called.

        Empty where there are none, as for results of runs that knew no reviewer.
        """
        if not self.decisions:
            return {}
        n_keep, n_drop = (list(self.decisions.values()).count(word) for word in (KEEP, DROP))
        digest = hashlib.sha256(json_bytes(dict(self.decisions))).hexdigest()[:DIGEST_DIGITS]
        return {"overrides": f"{n_keep} keep, {n_drop} drop ({digest})"}

    def of(self, ids: Sequence[str]) -> Int8[np.ndarray, " n"] | None:
        """KEEP, DROP or 0 of the pairs of these ids; None where none was decided on."""
        said = np.array([self.decisions.get(i, 0) for i in ids], dtype=np.int8)
        return said if said.any() else None

    def strangers(self, ids: Sequence[str]) -> str:
        """A warning that counts the decisions on pairs that are not among these training pairs.

        Empty where there are none. The beginning of an id is not taken for it: it might be that of
        several.
        """
        known = set(ids)
        strange = [_shown(i) for i in self.decisions if i not in known]
        if not strange:
            return ""
        shown = ", ".join(strange[:N_SHOWN]) + (", ..." if len(strange) > N_SHOWN else "")
        return (
            f"--overrides {self.path}: {len(strange):,} of {len(self.decisions):,} ids are of no "
            f"training pair of this run (held out, skipped or unknown) and change nothing: {shown}"
        )


def read_overrides(path: str | None) -> Overrides:
    """What a reviewer has decided, from a CSV file with the columns id and decision.

    In UTF-8, or in UTF-16 with its mark.

    Tolerated is what spreadsheets do: a byte order mark, semicolons or tabs in place of commas,
    capitals and spaces, quotes, empty rows, and other columns in another encoding.

    Args:
        path: of the file; None where nobody has reviewed.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row says neither keep nor drop,
            names no pair or contradicts an earlier one.
    """
    if path is None:
        return Overrides()
    rows = _rows_below_header(_read_text(path), path)
    decisions: dict[str, int] = {}
    lines: dict[str, int] = {}
    for line, (name, word) in rows:
        where = f"--overrides {path}, line {line}"
        if word not in WORDS:
            raise InputError(f"{where}: the decision must be keep or drop; got '{_shown(word)}'")
        if not name:
            raise InputError(f"{where}: no id beside {word}; give one or delete the row")
        if decisions.setdefault(name, WORDS[word]) != WORDS[word]:
            (other,) = WORDS.keys() - {word}
            raise InputError(
                f"{where}: {_shown(name)} is marked {word}, in line {lines[name]} {other}; "
                "delete one of the two rows"
            )
        lines.setdefault(name, line)
    return Overrides(decisions, path)


def _read_text(path: str) -> str:
    """The text of a file; what is not Unicode can only be in columns that are not read."""
    try:
        if not Path(path).is_file():  # a device may be read without end
            problem = "is no file" if Path(path).exists() else "does not exist"
            raise InputError(f"--overrides {path} {problem}; name a CSV file")
        data = Path(path).read_bytes()
        encoding = "utf-16" if data.startswith(UTF_16_MARKS) else "utf-8-sig"
        return data.decode(encoding, "replace").replace("\0", "")
    except OSError as error:
        raise InputError(f"--overrides {path} cannot be read ({error.strerror})") from error


def _rows_below_header(text: str, path: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Line, id and decision of every row that holds anything, in small letters.

    Raises:
        InputError: no delimiter makes a header that names both columns, or quotes end nowhere.
    """
    for delimiter in DELIMITERS:
        rows = _rows(text, delimiter, path)
        header = [_plain(cell) for cell in next(rows, Row(1, [])).cells]
        if {ID, DECISION} <= set(header):
            places = header.index(ID), header.index(DECISION)
            break
    else:
        first_line = _shown(text.lstrip().partition("\n")[0].strip())
        raise InputError(
            f"--overrides {path} must be a CSV file in Unicode with the columns {ID} and "
            f"{DECISION}; its first line is '{first_line}'"
        )
    for line, cells in rows:
        name, word = (_plain(cells[at]) if at < len(cells) else "" for at in places)
        yield line, (name, word)


def _rows(text: str, delimiter: str, path: str) -> Iterator[Row]:
    """The rows that hold anything, the header among them, without Excel's line `sep=;`.

    Raises:
        InputError: quotes that end nowhere or within a cell, which would swallow other rows.
    """
    csv.field_size_limit(2**31 - 1)
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"--overrides {path}, line {line}: {error}; save the table as CSV again"
            ) from error
        if cells is None:
            return
        if any(map(str.strip, cells)) and not (line == 1 and cells[0].startswith("sep=")):
            yield Row(line, cells)
        line = reader.line_num + 1


def _plain(cell: str) -> str:
    """A cell as it is compared."""
    return cell.strip().strip("\ufeff").casefold()


def _shown(cell: str) -> str:
    """A cell of a stranger's file as a message can show it."""
    text = cell.encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
