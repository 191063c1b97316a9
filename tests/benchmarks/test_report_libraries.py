"""The benchmark of drawing libraries: what it counts as drawn, as hovered, as reported."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reporting.report.browser import missing_programs, open_browser

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield importlib.import_module("report_libraries")
    sys.path.remove(BENCHMARKS)


def test_medians_are_given_with_their_range(bench: Any) -> None:
    rows = [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": np.inf}, {"a": 2.0}]
    assert bench.summarise(rows) == {"a": [2.0, 1.0, 3.0], "b": "given up after 50 seconds"}


def test_a_page_is_drawn_when_every_colour_is_there(bench: Any) -> None:
    """White with one pixel a colour of the palette, up to rounding; then one of them is missing."""
    pixels = np.full((20, 20, 3), 255, np.uint8)
    for place, colour in enumerate(bench.PALETTE):
        pixels[place, 3] = list(bytes.fromhex(colour[1:]))
    pixels[0, 3] += 1
    assert bench.shows_palette(pixels)
    pixels[4, 3] = 255
    assert not bench.shows_palette(pixels)


def test_pages_take_turns(bench: Any) -> None:
    assert [bench.order({"a": 1, "b": 2}, turn) for turn in range(3)] == [
        *(["a", "b"], ["b", "a"], ["a", "b"])
    ]


def test_no_data_ends_a_script(bench: Any) -> None:
    points = bench.draw_points(3, np.random.default_rng(0))
    points.caption[1] = "</script><script>alert(1)</script>"
    case = bench.Case([], importlib.import_module("report_pages").bokeh_map("canvas"), "")
    html = bench.page(case, points, [])
    assert "\\u003c/script>\\u003cscript>alert(1)" in html
    assert len(re.findall("</script>", html)) == 1


@pytest.mark.skipif(bool(missing_programs()), reason=f"no browser: {missing_programs()}")
def test_a_map_and_a_table_are_measured(bench: Any, tmp_path: Path) -> None:
    """By hand: 40 x 40 points on a grid in ten colours, of which the lasso holds the middle."""
    at = (np.arange(1600) % 40 + 0.5) / 40, (np.arange(1600) // 40 + 0.5) / 40
    x, y = (axis.astype(np.float32) for axis in at)
    captions = [f"no. {i} <i>of</i> them" for i in range(1600)]
    points = bench.Points(x, y, (np.arange(1600) % 10).astype(np.uint8), captions)
    pages = importlib.import_module("report_pages")
    bokeh = pages.Case(pages.bokeh_scripts("bokeh"), pages.bokeh_map("canvas"), pages.BOKEH_MAP)
    rng = np.random.default_rng(0)
    file = tmp_path / "page.html"
    with open_browser(tmp_path / "downloads") as browser:
        file.write_text(bench.page(bokeh, points, bench.photographs(rng)), "utf-8")
        of_map = bench.measure_map(browser, file, points)
        table = pages.Case([], lambda _: "null", pages.HTML_TABLE, pages.html_table)
        file.write_text(bench.page(table, bench.draw_rows(12, rng), []), "utf-8")
        of_table = bench.measure_table(browser, file)
        file.write_text("<img src='http://example.invalid/a.png'>", "utf-8")
        browser.open(file)
        with pytest.raises(SystemExit, match=r"a page is not on its own: .*example"):
            bench.checked(browser)
    assert of_map["hover_right_image"] == of_map["hover_caption_as_text"] == 1
    assert of_map["lasso_count_error"] < 0.02
    assert 0 < of_map["lasso_seconds"] < of_map["lasso_painted_seconds"]
    assert of_table["rows_to_print"] == 12
    assert (of_table["told_tables"], of_table["told_heads"], of_table["told_rows"]) == (1, 5, 13)
    assert of_table["sorted_by_keyboard"] == 1
