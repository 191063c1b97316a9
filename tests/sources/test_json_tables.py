"""Rows of JSON; the truth is written beside each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.settings import InputError
from sources.json_tables import read_lines, read_rows, rows_in

ROWS = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (ROWS, ROWS),
        ({"info": {"a": 1}, "data": ROWS, "few": [{"x": 1}]}, ROWS),  # the longest list
        ({"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]}, ROWS),
        ({"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "one", "1": "two"}}, ROWS),
        ({"a.jpg": "one", "b.jpg": ["x", "y"]}, [("a.jpg", "one"), ("b.jpg", ["x", "y"])]),
        ({"a.jpg": {"caption": "one", "tags": "t"}}, [("a.jpg", "one")]),
        ({"labels": {"a": "one", "b": {"label": "two"}}}, [("a", "one"), ("b", {"label": "two"})]),
        ({"classes": ["zero", "one"], "labels": {"a": 1, "b": 7}}, [("a", "one"), ("b", 7)]),
        ({"a": 1, "b": "x"}, None),
        ([1, 2], None),
        ([], None),
        ("text", None),
        (3, None),
    ],
)
def test_rows_in_json(content: Any, rows: list[Any] | None) -> None:
    found = rows_in(content)
    if rows and isinstance(rows[0], tuple):
        assert found is not None
        assert [(row["file_name"], row["caption"]) for row in found] == rows
    else:
        assert found == rows


def test_annotations_find_their_images() -> None:
    content = {
        "images": [
            {"id": 1, "file_name": "a"},
            {"id": 2, "file_name": "b"},
            {"id": 3, "file_name": "c"},
        ],
        "annotations": [
            {"id": 9, "image_id": 2, "caption": "one"},
            {"id": 8, "image_id": 2, "caption": "two"},
            {"id": 7, "image_id": 1, "caption": None},
            {"id": 6, "image_id": 5, "caption": "lost"},
        ],
    }
    found = rows_in(content)
    assert found is not None
    assert [(row["file_name"], row["caption"]) for row in found] == [
        ("b", "one"),
        ("b", "two"),
        ("a", None),
        ("image 5", "lost"),
        ("c", None),  # an image that nothing is said of is not left out
    ]


def test_boxes_are_no_captions() -> None:
    content = {
        "images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}],
    }
    assert rows_in(content) == [{"id": 1, "file_name": "a", "image_id": 1, "bbox": [0, 0, 1, 1]}]


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}, "a"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "a",
        ),
        ({"conversations": [{"from": "human", "value": "?"}]}, None),
        ({"conversations": [3, {"from": "gpt"}]}, None),
        ({"conversations": [{"from": "gpt", "value": "a"}], "caption": "mine"}, "mine"),
    ],
)
def test_the_first_answer_of_a_conversation(row: dict[str, Any], caption: str | None) -> None:
    [found] = read_rows(json.dumps([row]), Path("x.json")) or []
    assert found["caption"] == caption


def test_lines_under_another_name() -> None:
    text = "\n".join(map(json.dumps, ROWS)) + "\n\n"
    assert read_rows(text, Path("x.json")) == ROWS
    assert read_rows(json.dumps(ROWS, indent=1), Path("x.json")) == ROWS
    assert read_rows("{\n broken", Path("x.json")) is None
    assert read_rows("", Path("x.json")) is None
    assert read_lines("", Path("x.jsonl")) == []


def test_a_line_that_is_none_is_named() -> None:
    text = json.dumps(ROWS[0]) + "\n[1]\n"
    with pytest.raises(InputError, match=r"x.jsonl, line 2: not a JSON object; correct it"):
        read_lines(text, Path("x.jsonl"))
    with pytest.raises(InputError, match=r"x.json, line 2: not a JSON object"):
        read_rows(text, Path("x.json"))
