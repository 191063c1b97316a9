"""Rows of JSON: a list of objects, lines of them, COCO's tables, and objects keyed by file.

Read are what the tools of this field write: a list, or an object that holds one under any name
(BLIP, ALBEF, LLaVA; Karpathy's `images` with `sentences`); COCO's `images` and `annotations`, which
belong together by number; columns as pandas writes them; and captions by file, as FiftyOne's
`labels` and kohya's tables have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from artifacts.settings import InputError
from sources.base import DataConfig
from sources.columns import SPLIT_COLUMN, caption_columns, image_column
from sources.image_files import is_image_name
from sources.places import Place
from sources.splits import official_split

FILE, CAPTION = "file_name", "caption"  # what rows are given whose fields have no names
CONVERSATIONS = ("conversations", "messages")
ANSWERERS = ("gpt", "assistant", "model", "bot")
Row = Mapping[str, Any]


def read_rows(text: str, path: Place) -> list[Row] | None:
    """The rows of a JSON or JSON lines file; None where it holds none.

    Raises:
        InputError: it begins as lines of JSON, and one of them is none.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return read_lines(text, path) if _begins_with_object(text) else None
    rows = rows_in(content)
    return None if rows is None else [with_answer(row) for row in rows]


def _begins_with_object(text: str) -> bool:
    """Whether the first line that holds anything is a JSON object of its own."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first), Mapping)
    except (ValueError, RecursionError):
        return False


def read_lines(text: str, path: Place) -> list[Row]:
    """The rows of JSON lines.

    Raises:
        InputError: a line is not a JSON object.
    """
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, Mapping):
            raise InputError(f"{path}, line {number}: not a JSON object; correct it")
        rows.append(with_answer(row))
    return rows


def rows_in(content: object) -> Sequence[Row] | None:
    """The rows of a whole JSON file; None where it holds none."""
    if isinstance(content, list):
        return _objects(content) or _pairs(content)
    if not isinstance(content, Mapping):
        return None
    if "annotations" in content and "images" in content:
        return _coco_rows(content)
    found = {str(name): _rows_under(str(name), value) for name, value in content.items()}
    lists = {name: rows for name, rows in found.items() if rows}
    if lists:
        return _joined(lists)
    return _of_labels(content) or _by_file(content) or _columns(content)


def _rows_under(name: str, value: object) -> Sequence[Row] | None:
    """The rows in a list, or in whatever the name of a split stands for."""
    if isinstance(value, list):
        return _objects(value)
    return rows_in(value) if official_split(name) is not None else None


def _objects(values: list[Any]) -> list[Row] | None:
    """A list as rows; None where another thing than objects stands in it."""
    return values if values and all(isinstance(value, Mapping) for value in values) else None


def _pairs(values: list[Any]) -> list[Row] | None:
    """Rows of a list of lists, the name of an image and its captions each."""
    if not all(isinstance(v, list) and len(v) > 1 and is_image_name(str(v[0])) for v in values):
        return None
    return [{FILE: value[0], CAPTION: value[1:]} for value in values] or None


def _joined(lists: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The rows of all lists of the longest one's kind, with the split that a list is called."""
    longest = max(lists.values(), key=len)
    alike = {name: rows for name, rows in lists.items() if rows[0].keys() == longest[0].keys()}
    splits = {name: official_split(name) for name in alike}
    return [
        {SPLIT_COLUMN: split, **row} if (split := splits[name]) is not None else row
        for name, rows in alike.items()
        for row in rows
    ]


def _coco_rows(content: Row) -> list[Row] | None:
    """A row for each annotation of COCO with the fields of its image, and for what has no other."""
    images, annotations = content["images"], content["annotations"]
    if not (isinstance(images, list) and isinstance(annotations, list)):
        return None
    try:
        by_id = {image_number(image["id"]): image for image in images}
        rows: list[Row] = []
        for row in annotations:
            unknown = {FILE: f"image {row['image_id']}"}
            rows.append({**by_id.get(image_number(row["image_id"]), unknown), **row})
        described = {image_number(row["image_id"]) for row in annotations}
    except (KeyError, TypeError, ValueError):
        return _objects(annotations)
    if any(CAPTION in row for row in annotations):
        rows += [{**by_id[i], CAPTION: None} for i in by_id if i not in described]
    return rows


def _columns(content: Row) -> list[Row] | None:
    """Rows of columns, each a list or an object by the row's number, as pandas writes them."""
    if {"columns", "data"} <= content.keys():  # its orient="split"
        names, data = content["columns"], content["data"]
        if isinstance(names, list) and isinstance(data, list) and _are_as_long(data, len(names)):
            return [dict(zip(map(str, names), row, strict=True)) for row in data]
    columns = {
        name: list(values.values()) if isinstance(values, Mapping) else values
        for name, values in content.items()
    }
    if not columns or not all(isinstance(values, list) for values in columns.values()):
        return None
    if any(isinstance(v, Mapping) and not _is_numbered(v) for v in content.values()):
        return None
    if len(columns) < 2 or len({len(values) for values in columns.values()}) > 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def image_number(value: object) -> str:
    """The number of an image in COCO's tables, where some write it as a text.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, int | str):
        raise TypeError(f"the number of an image is {value!r}"[:100])
    return str(value)


def _are_as_long(rows: list[Any], n: int) -> bool:
    return bool(rows) and all(isinstance(row, list) and len(row) == n for row in rows)


def _is_numbered(values: Row) -> bool:
    return all(str(name).isdigit() for name in values)


def _of_labels(content: Row) -> list[Row] | None:
    """Rows of FiftyOne's labels, keyed by the names of files without their extensions."""
    labels, classes = content.get("labels"), content.get("classes")
    if not isinstance(labels, Mapping):
        return None
    return [{FILE: str(file), CAPTION: _label(value, classes)} for file, value in labels.items()]


def _by_file(content: Row) -> list[Row] | None:
    """Rows of captions keyed by file, as kohya's tables have them, with extensions or without."""
    named = [file for file in content if is_image_name(str(file))]
    described = [v for v in content.values() if isinstance(v, Mapping) and caption_names(v)]
    if len(named) * 2 <= len(content) and len(described) * 2 <= len(content):
        return None
    return [_keyed_row(str(file), value) for file, value in content.items()]


def caption_names(fields: Row) -> tuple[str, ...]:
    """The fields of an object that are called like captions."""
    return caption_columns(list(map(str, fields)), DataConfig())


def _keyed_row(file: str, value: object) -> Row:
    """A row of what stands under a file's name, or under a number where it names a file itself."""
    if not isinstance(value, Mapping):
        return {FILE: file, CAPTION: value}
    names_file = image_column(list(map(str, value)), DataConfig()) is not None
    return value if names_file else {**value, FILE: file}


def _label(value: object, classes: object) -> object:
    """A label as it is, or the class that its number stands for."""
    if isinstance(value, int) and isinstance(classes, list) and 0 <= value < len(classes):
        return classes[value]
    return value


def with_answer(row: Row) -> Row:
    """A conversation's row with its first answer as the caption; other rows as they are."""
    turns = next((row[name] for name in CONVERSATIONS if name in row), None)
    if not isinstance(turns, list) or CAPTION in row:
        return row
    return {**row, CAPTION: next(_answers(turns), None)}


def _answers(turns: Sequence[object]) -> Iterator[str]:
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        speaker = turn.get("from", turn.get("role"))
        text = turn.get("value", turn.get("content"))
        if isinstance(text, list):  # parts, of which some are texts
            parts = (part.get("text") for part in text if isinstance(part, Mapping))
            text = " ".join(part for part in parts if isinstance(part, str))
        if speaker in ANSWERERS and isinstance(text, str):
            yield text
