"""Lines as matplotlib is given them, letter by letter; DejaVu Sans comes with matplotlib."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from reporting.lettering import drawable, drawable_lines, list_from_left
from reporting.words import cluster_label, plain
from tests.reporting.conftest import Install, write_font

KALB = "\ufedb\ufee0\ufe90"  # كلب in its initial, medial and final shapes


@pytest.mark.parametrize(
    "line",
    ["A dog runs", "Ein Hund läuft über die Straße, à 3 €", "Собака бежит", "soft\u00adhyphen ²"],
)
def test_text_from_left_to_right_stays_as_it_is(line: str) -> None:
    assert drawable(line) == line


def test_dollars_open_no_mathematics() -> None:
    assert drawable("costs $5") == r"costs \$5"
    assert drawable("שלום $5") == r"\$5 םולש"  # the backslash before the dollar


def test_hebrew_is_drawn_from_right_to_left() -> None:
    assert drawable("שלום") == "םולש"
    assert drawable("כלב dog 12.5%") == "dog 12.5% בלכ"
    assert drawable("dog כלב 10:30") == "dog 10:30 בלכ"


def test_arabic_letters_are_joined() -> None:
    assert drawable("كلب") == KALB[::-1]
    assert drawable("سلا") == "\ufefc\ufeb3"  # lam and alef are one
    assert drawable("می‌دود") == "\ufea9\ufeed\ufea9\ufbfd\ufee3"  # apart at the non-joiner


def test_brackets_are_mirrored_where_they_are_read_to_the_left() -> None:
    assert drawable("כלב (dog) חתול") == "לותח (dog) בלכ"
    assert drawable("a (כלב) b") == "a (בלכ) b"
    assert drawable("[כלב) a") == "a (בלכ]"
    assert drawable("(a) כ") == "(a) כ"


def test_marks_stand_where_the_font_draws_them_over_their_letter() -> None:
    assert drawable("שָׁ") == "\u05c1\u05b8ש"
    assert drawable("cafe\u0301") == "café"


def test_terms_follow_from_left_to_right_whichever_way_each_is_read() -> None:
    assert cluster_label(3, ["כלב", "dog", "חתול"]) == "3: בלכ, dog, לותח"
    assert cluster_label(3, ["כלב", "חתול"]) == "3: בלכ, לותח"
    assert cluster_label(3, ["dog", "läuft"]) == "3: dog, läuft"
    assert list_from_left("3: ", ["dog", "cat"]) == "3: dog, cat"
    assert cluster_label(3, []) == "cluster 3"


def test_a_label_is_cut_at_its_end_in_reading_order() -> None:
    assert plain("כלב שחור", 6) == "…ש בלכ"


def test_lines_of_a_caption_keep_its_direction() -> None:
    assert drawable_lines("כלב שחור iPhone (12) x", 8) == ["רוחש בלכ", "iPhone", "x (12)"]
    assert drawable_lines("dog שלום (כ)", 8) == ["dog םולש", "(כ)"]
    assert drawable_lines("שלום dog, (a)", 9) == [",dog םולש", "(a)"]


def test_letters_without_a_font_are_named(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    with caplog.at_level(logging.WARNING):
        assert drawable("3: 海滩, 公园") == "3: [Chinese]"
        assert drawable("一只黑狗 on 海滩。 x") == "[Chinese] on [Chinese] x"
        assert drawable("犬が走る。") == "[Japanese]"
        assert drawable("검은 개") == "[Korean]"
        assert drawable("สุนัข วิ่ง, कुत्ता") == "[Thai, Devanagari]"
        assert drawable("dog \U0001f9ff \u20e3") == "dog □ □"
    assert len(caplog.messages) == 3, "one line for each that is missing, once"
    chinese, devanagari, thai = caplog.messages
    assert "Chinese, Japanese or Korean letters" in chinese
    assert chinese.endswith("apt-get install fonts-noto-cjk")
    assert "Thai letters" in thai
    assert thai.endswith("fonts-thai-tlwg")
    assert "Devanagari letters" in devanagari
    assert devanagari.endswith("fonts-noto-core")


def test_a_rare_letter_among_others_is_a_square(install: Install, tmp_path: Path) -> None:
    install(write_font(tmp_path / "a.ttf", "一只黑狗"))
    assert drawable("一只黑狗犬") == "一只黑狗□"
    assert drawable("黑犬猫") == "[Chinese]"


def test_an_arabic_letter_without_its_shape_is_drawn_as_it_is(
    install: Install, tmp_path: Path
) -> None:
    """The last letter of Urdu's "dogs" is not in DejaVu Sans."""
    install()
    assert drawable("کتے") == "□\ufe96\ufb90"
    install(write_font(tmp_path / "a.ttf", "ے"))
    assert drawable("کتے") == "ے\ufe98\ufb90"


def test_what_is_not_seen_is_not_drawn() -> None:
    assert drawable("é\u200b\u2066dog\u2069\ufe0f") == "édog"
