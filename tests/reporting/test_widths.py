"""Text cut and wrapped by hand."""

from __future__ import annotations

import textwrap

import pytest

from reporting.widths import columns, cut, fill_up, shorten, wrap

ENGLISH = "A well-known dog, with an unimaginablylongnameofsomething, runs over $5 of läufts —  ok"


@pytest.mark.parametrize(
    ("text", "width"),
    [("dog", 3), ("läuft", 5), ("狗 a", 4), ("ｱア", 3), ("e\u0301", 1), ("ที่", 1), ("का", 2)],
)
def test_columns(text: str, width: int) -> None:
    assert columns(text) == width


def test_a_cut_is_by_columns_and_never_before_a_mark() -> None:
    assert [cut("黑狗ab", n) for n in range(7)] == ["", "", "黑", "黑", "黑狗", "黑狗a", "黑狗ab"]
    assert cut("ที่นี่", 1) == "ที่"
    assert cut("ae\u0301i", 2) == "ae\u0301"


def test_shorten() -> None:
    assert shorten("two\nlines  and", 50) == "two lines and"
    assert shorten("x" * 50, 10) == "x" * 9 + "…"
    assert shorten("一只黑狗在海滩", 14) == "一只黑狗在海滩"
    assert shorten("一只黑狗在海滩", 10) == "一只黑狗…"
    assert shorten("ที่ที่", 2) == "ที่ที่"


def test_fill_up() -> None:
    assert fill_up("狗", 4) == "狗  "
    assert fill_up("long", 2) == "long"


@pytest.mark.parametrize("width", [5, 8, 13, 34, 200])
def test_latin_lines_are_those_of_textwrap(width: int) -> None:
    assert wrap(ENGLISH, width) == textwrap.wrap(ENGLISH, width)


def test_without_spaces_lines_end_between_characters() -> None:
    assert wrap("一只黑狗在海滩上散步", 8) == ["一只黑狗", "在海滩上", "散步"]
    assert wrap("一只黑狗，在海滩", 8) == ["一只黑", "狗，在海", "滩"]  # no comma begins a line
    assert wrap("a 黑狗 runs", 6) == ["a 黑狗", "runs"]


def test_thai_lines_end_between_words() -> None:
    assert wrap("สุนัขวิ่งบนชายหาด", 7) == ["สุนัขวิ่งบน", "ชายหาด"]  # marks take no column
    assert wrap("สุนัขวิ่งบนชายหาด", 6) == ["สุนัขวิ่ง", "บน", "ชายหาด"]


def test_korean_words_stay_whole() -> None:
    assert wrap("검은 개가 해변에서 달린다", 10) == ["검은 개가", "해변에서", "달린다"]


def test_a_word_longer_than_a_line_is_broken_between_characters_with_their_marks() -> None:
    word = "ที่" * 5
    assert "".join(wrap(word, 2)) == word
    assert all(columns(line) <= 2 and line.startswith("ที่") for line in wrap(word, 2))
    assert wrap("한" * 5, 4) == ["한한", "한한", "한"]
