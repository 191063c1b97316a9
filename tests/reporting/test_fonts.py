"""Which font draws what, on systems that hold fonts made for the test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fontTools.ttLib import TTCollection, TTFont
from matplotlib.figure import Figure
from matplotlib.text import Text

from reporting import fonts
from reporting.figures.clusters import cluster_sizes
from reporting.figures.sheets import contact_sheet
from reporting.figures.style import in_style
from reporting.words import plain
from tests.reporting.conftest import Install, write_font

THAI = "กขคงจชซดตทนบปพมยรลวสหอ"


def texts_of(figure: Figure) -> list[Text]:
    found = figure.findobj(Text)
    return [text for text in found if isinstance(text, Text) and text.get_text()]


@in_style
def drawn(*shown: str, weight: str = "normal") -> Figure:
    figure = Figure(figsize=(3, 1))
    for i, text in enumerate(shown):
        figure.text(0.1, 0.2 + 0.5 * i, plain(text), fontweight=weight)
    return figure


def ink(figure: Figure) -> int:
    """Dark pixels; a character without a glyph is a warning, and with that an error here."""
    written = io.BytesIO()
    figure.savefig(written, format="png")
    pixels = np.asarray(PIL.Image.open(written).convert("L"))
    return int((pixels < 128).sum())


def test_a_font_is_found_by_its_characters_and_not_by_its_name(
    install: Install, tmp_path: Path
) -> None:
    install(
        write_font(tmp_path / "Noto Sans Thai.ttf", "abc"),
        write_font(tmp_path / "zz.ttf", THAI),
        write_font(tmp_path / "Thai.ttf", "ก", blank=True),
    )
    assert fonts.fallback("ก") == str(tmp_path / "zz.ttf")
    assert fonts.fallback("犬") is None


def test_one_font_for_all_letters_of_a_script(install: Install, tmp_path: Path) -> None:
    few = write_font(tmp_path / "a sans.ttf", THAI[:3] + "ๆ")
    many = write_font(tmp_path / "b.ttf", THAI)
    install(few, many)
    assert {fonts.fallback(c) for c in THAI} == {many}
    assert fonts.fallback("ๆ") == few  # which the other lacks


def test_the_plainest_of_equal_fonts(install: Install, tmp_path: Path) -> None:
    install(
        write_font(tmp_path / "a sans mono.ttf", THAI),
        write_font(tmp_path / "a sans.ttf", THAI, style="Bold"),
        write_font(tmp_path / "a serif.ttf", THAI),
        write_font(tmp_path / "c sans.ttf", THAI[:-1]),  # nearly all of them
        write_font(tmp_path / "b.ttf", THAI),
    )
    assert fonts.fallback("ก") == str(tmp_path / "c sans.ttf")


def test_broken_fonts_and_placeholders_are_passed_over(install: Install, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    good = write_font(tmp_path / "good.ttf", "犬")
    install(
        str(broken),
        str(tmp_path / "gone.ttf"),
        write_font(tmp_path / "Adobe Blank.ttf", "犬"),
        write_font(tmp_path / "LastResort.ttf", "犬"),
        good,
    )
    assert [face.path for face in fonts.installed_faces()] == [good]
    assert fonts.fallback("犬") == good


def test_installed_fonts_are_read_once_and_only_when_they_are_needed(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = install(write_font(tmp_path / "a.ttf", "犬"))
    looked: list[int] = []

    def find() -> list[str]:
        looked.append(1)
        return held

    monkeypatch.setattr(fonts, "findSystemFonts", find)
    drawn("Ein Hund läuft, собака, كلب, כלב")
    assert looked == []
    drawn("犬", "ไทย")
    assert looked == [1]


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_letters_are_drawn_by_the_font_that_has_them(
    install: Install, tmp_path: Path, weight: str
) -> None:
    (path,) = install(write_font(tmp_path / "a.ttf", "犬猫"))
    figure = drawn("a 犬猫", "plain", weight=weight)
    animal, latin = texts_of(figure)
    assert animal.get_text() == "a 犬猫"
    assert animal.get_fontfamily() == ["sans-serif", f"file {path}"]
    assert latin.get_fontfamily() == ["sans-serif"]
    # Each is a square of 0.9 em: 10 points at 150 dots an inch are 21 pixels.
    extra = ink(figure) - ink(drawn("a", "plain", weight=weight))
    assert extra == pytest.approx(2 * 18.75**2, rel=0.1)


def test_collections_are_drawn_with(install: Install, tmp_path: Path) -> None:
    collection = TTCollection()
    collection.fonts = [
        TTFont(write_font(tmp_path / name, characters))
        for name, characters in (("first.ttf", "犬猫"), ("second.ttf", "犬猫が"))
    ]
    path = tmp_path / "both.ttc"
    collection.save(path)
    install(str(path))
    assert fonts.fallback("犬") == str(path)
    assert fonts.fallback("が") is None  # matplotlib takes the first alone
    assert ink(drawn("犬")) > 200


def test_scripts_by_their_letters() -> None:
    assert {fonts.script(c) for c in "犬あアー가、「！ｱ"} == {fonts.EAST_ASIAN}
    assert [fonts.script(c) for c in "กកاא😀"] == ["Thai", "Khmer", "Arabic", "Hebrew", "😀"]


def test_thai_is_drawn_where_tones_stand_above_vowels(install: Install, tmp_path: Path) -> None:
    letters = THAI + "\u0e35\u0e49"
    install(
        write_font(tmp_path / "a sans.ttf", letters),
        write_font(tmp_path / "b.ttf", letters, raised="\u0e49"),
    )
    assert fonts.fallback("ก") == str(tmp_path / "b.ttf")


def test_labels_of_axes_and_captions_get_their_font(install: Install, tmp_path: Path) -> None:
    (path,) = install(write_font(tmp_path / "a.ttf", "黑狗海滩"))
    bars = cluster_sizes(np.array([9, 5]), [["黑狗", "海滩"], ["dog"]])
    photograph = np.zeros((4, 4, 3), dtype=np.uint8)
    sheet = contact_sheet([photograph] * 2, ["黑狗\n1: 海滩", "dog"], heading="x", n_columns=2)
    for figure, label in ((bars, "0: 黑狗, 海滩"), (sheet, "黑狗\n1: 海滩")):
        figure.savefig(io.BytesIO(), format="png")
        families = {text.get_text(): text.get_fontfamily() for text in texts_of(figure)}
        assert families[label] == ["sans-serif", f"file {path}"]
        others = [family for shown, family in families.items() if shown != label]
        assert others
        assert set(map(tuple, others)) == {("sans-serif",)}


def test_figures_without_fonts_are_drawn_without_a_warning(install: Install) -> None:
    install()
    bars = cluster_sizes(np.array([9, 5]), [["黑狗", "海滩"], ["สุนัข", "dog"]])
    bars.savefig(io.BytesIO(), format="png")
    assert {"0: [Chinese]", "1: [Thai], dog"} <= {text.get_text() for text in texts_of(bars)}
