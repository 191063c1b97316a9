"""Figures of the demographic gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.text import Annotation

from baselines import FULL
from reporting.figures import gaps as gaps_module
from reporting.figures import style
from tests.reporting.test_figures import (
    METHODS,
    SUBSETS,
    assert_no_overlap,
    dots,
    make_gaps,
    png,
    segments,
    texts,
)


@pytest.mark.parametrize("methods", SUBSETS)
def test_fairness_comparison(methods: Sequence[str]) -> None:
    gaps = make_gaps(methods)
    figure = gaps_module.fairness_comparison(gaps, 5)
    png(figure)
    assert len(figure.axes) == 4
    first = figure.axes[0]
    rows = style.method_rows(list(methods))
    for segment, dot, method in zip(segments(first), dots(first), rows, strict=True):
        gap = gaps["same_epochs"][method]["gender"]["gap"]["recall@5"]
        assert list(segment[:, 0]) == gap["interval_95"]
        assert list(dot) == [gap["gap"], rows[method]]
        assert list(segment[:, 1]) == 2 * [rows[method]]
    assert first.get_xlim()[0] == 0
    assert "gender: female (412), male (688)" in first.get_title(loc="left")
    assert_no_overlap(figure, first.texts)


@pytest.mark.parametrize(("gap", "end"), [(0.0, 3.0), (5.0, 5.0)])
def test_an_interval_that_misses_its_gap_is_drawn(gap: float, end: float) -> None:
    gaps = make_gaps(("random", FULL))
    gaps["same_epochs"]["random"]["gender"]["gap"]["recall@5"] = {
        "gap": gap,
        "interval_95": [0.4, 3.0],
    }
    figure = gaps_module.fairness_comparison(gaps, 5)
    png(figure)
    drawn = figure.axes[0]
    assert list(dots(drawn)[0]) == [gap, 0.0]
    np.testing.assert_array_equal(segments(drawn)[0], [[0.4, 0.0], [3.0, 0.0]])
    text = drawn.texts[0]
    assert isinstance(text, Annotation)
    assert text.get_text() == f"{gap:.1f} (0.4 to 3.0)"
    assert text.xy == (end, 0.0)  # behind the gap and its interval


@pytest.mark.parametrize(("child", "adult"), [(7, 744), (7, 3)])
def test_groups_too_small_are_named_and_not_drawn(child: int, adult: int) -> None:
    gaps = make_gaps(child=child, adult=adult)
    fairness, recalls = (
        gaps_module.fairness_comparison(gaps, 5),
        gaps_module.demographic_gaps(gaps, 5),
    )
    png(fairness)
    png(recalls)
    age = fairness.axes[2]
    assert "child (7, too few)" in texts(age)[0]
    assert "Not enough captions to compare two groups" in texts(age)[0]
    age = recalls.axes[2]
    drawn = dots(age)
    if adult > 20:
        assert len(drawn) == len(METHODS)
        assert "● child (7, too few), ◇ adult (744)" in age.get_title(loc="left")
    else:
        assert not len(drawn)
        assert "Not enough captions to score any group" in texts(age)[0]


def test_an_attribute_that_is_not_shown_takes_little_room() -> None:
    all_shown = gaps_module.fairness_comparison(make_gaps(), 5)
    one_shown = gaps_module.fairness_comparison(make_gaps(child=7), 5)
    assert one_shown.get_figheight() < 0.7 * all_shown.get_figheight()
    png(one_shown)
    shown, hidden = (one_shown.axes[i].get_window_extent().height for i in (0, 2))
    assert hidden < 0.4 * shown


def test_demographic_gaps() -> None:
    gaps = make_gaps()
    figure = gaps_module.demographic_gaps(gaps, 10)
    png(figure)
    lines = figure.axes[0].lines
    rows = style.method_rows(METHODS)
    for line, method in zip(lines, rows, strict=True):
        groups = gaps["same_epochs"][method]["gender"]["groups"].values()
        recalls = [g["text_to_image_recall@10"] for g in groups]
        assert list(np.asarray(line.get_xdata())) == [min(recalls), max(recalls)]
    titles = [axes.title for axes in figure.axes]
    assert_no_overlap(figure, titles)
    assert "● female (412), ◇ male (688)" in figure.axes[0].get_title(loc="left")
