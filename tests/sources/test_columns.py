"""Which columns are read; the truth is written beside each header."""

from __future__ import annotations

from typing import Any

import pytest

from sources.base import DataConfig
from sources.columns import Columns, choose_column, find_columns, first_known


@pytest.mark.parametrize(
    ("named", "names", "column"),
    [
        ("caption", ["title", "caption"], "caption"),
        ("caption", ["text", "Title", "TITLE"], "Title"),
        ("caption", ["text", "CAPTION"], "CAPTION"),
        ("caption", ["words"], None),
        ("words", ["caption", "words"], "words"),
        ("words", ["caption", "Words"], None),  # what is named is not looked for
    ],
)
def test_the_column_that_is_named_or_known(
    named: str, names: list[str], column: str | None
) -> None:
    assert choose_column(named, "caption", ("caption", "title", "text"), names) == column


def test_the_first_known_column() -> None:
    assert first_known(("b", "a"), ["a", "x", "B", "b"]) == "B"
    assert first_known(("c",), ["a"]) is None


@pytest.mark.parametrize(
    ("header", "image", "captions"),
    [
        (["image", "caption"], "image", ["caption"]),
        (["image", "title", "caption"], "image", ["caption"]),
        (["filename", "prompt"], "filename", ["prompt"]),
        (["Img_Path", "TEXT"], "Img_Path", ["TEXT"]),
        (["raw", "sentids", "split", "filename", "img_id"], "filename", ["raw"]),
        (
            ["image", *(f"caption_{i}" for i in (0, 10, 2, 1))],
            "image",
            ["caption_0", "caption_1", "caption_2", "caption_10"],
        ),
        (["image", "caption", "caption2", "captions"], "image", ["caption", "caption2"]),
        (["image", "captions", "title"], "image", ["captions"]),
        (["file_path", "comment_number", "comment"], "file_path", ["comment"]),
    ],
)
def test_columns_are_found_in_one_order(header: list[str], image: str, captions: list[str]) -> None:
    found = find_columns(header, DataConfig())
    assert found is not None
    assert (found.image, [*found.captions]) == (image, captions)


def test_what_is_taken_and_what_is_not_is_named() -> None:
    found = find_columns(["image", "title", "Caption", "SPLIT", "id"], DataConfig())
    assert found == Columns("image", ("Caption",), "SPLIT", ("title",))
    assert found.note() == "columns image, Caption, SPLIT (title not used)"


@pytest.mark.parametrize(
    ("flags", "header", "columns"),
    [
        ({"caption_column": "title"}, ["image", "title", "caption"], ("image", ("title",))),
        ({"image_column": "thumb"}, ["image", "thumb", "text"], ("thumb", ("text",))),
        ({"caption_column": "words"}, ["image", "caption"], None),
        ({"image_column": "thumb"}, ["image", "caption"], None),
        ({}, ["image", "words"], None),
        ({}, ["caption"], None),
    ],
)
def test_flags_decide(
    flags: dict[str, Any], header: list[str], columns: tuple[str, tuple[str, ...]] | None
) -> None:
    found = find_columns(header, DataConfig(**flags))
    assert (found and (found.image, found.captions)) == columns
