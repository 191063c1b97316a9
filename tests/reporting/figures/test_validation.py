"""The figure of the influence estimate beside real retraining."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import AxLine

from baselines import INFLUENCESPACE
from reporting import words
from reporting.figures import style, validation
from tests.reporting.test_figures import (
    assert_no_overlap,
    dot_colors,
    dots,
    make_validation,
    png,
    vertical_lines,
)


def validation_figure(n: int, **changes: Any) -> tuple[Figure, dict[str, Any]]:
    checks = make_validation(n, **changes)
    return validation.influence_validation(checks["points"], checks), checks


@pytest.mark.parametrize("n", [1, 6, 20, 200])
def test_influence_validation(n: int) -> None:
    figure, checks = validation_figure(n)
    png(figure)
    assert len(figure.axes) == 3
    for axes, check in zip(figure.axes, ("loco", "small_weight", "lds"), strict=True):
        points = [(p["predicted"], p["real"]) for p in checks["points"][check]]
        np.testing.assert_allclose(dots(axes), points)
        bars = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
        lengths = [[float(np.ptp(s, axis=0).max()) for s in segments] for segments in bars]
        errors = [
            [2 * p[name] for p in checks["points"][check]]
            for name in ("predicted_stderr", "real_stderr")
        ]
        np.testing.assert_allclose(lengths, errors)
        ideal = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert isinstance(ideal, AxLine)
        assert ideal.get_slope() == 1
        start = ideal.get_xy1()
        assert start is not None
        assert start[0] == start[1]
        # Every point with its bars is in the panel, as is zero where it is drawn.
        assert axes.viewLim.x0 < min(x for x, _ in points)
        assert axes.viewLim.x1 > max(x for x, _ in points)
        assert axes.viewLim.y0 < min(y for _, y in points)
        assert axes.viewLim.y1 > max(y for _, y in points)
        heading = axes.get_title(loc="left").splitlines()
        assert heading[0] == words.CHECK_LABELS[check]
        assert heading[1] == "Spearman 0.90 (ceiling 0.98), slope 1.10"
    assert figure.axes[0].get_xlabel() == (
        "predicted change of the validation loss when the cluster is left out (%)"
    )
    large, *small = (axes.get_window_extent() for axes in figure.axes)
    assert large.width * large.height > 2 * max(box.width * box.height for box in small)
    labels = [
        artist
        for axes in figure.axes
        for artist in (axes.xaxis.label, axes.yaxis.label, axes._left_title)  # type: ignore[attr-defined]
    ]
    assert_no_overlap(figure, labels)


def test_axes_of_validation_share_a_range_where_it_is_not_much_larger() -> None:
    figure, _ = validation_figure(20)
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()
    checks = make_validation(20)
    for point in checks["points"]["loco"]:
        point |= {"real": 0.02 * point["real"], "real_stderr": 0.0}
    figure = validation.influence_validation(checks["points"], checks)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 0.3 * np.ptp(figure.axes[0].get_xlim())


def test_zero_is_drawn_where_effects_reach_it() -> None:
    figure, _ = validation_figure(20)
    assert vertical_lines(figure.axes[0]) == {0.0}
    assert vertical_lines(figure.axes[2]) == set()


def test_points_are_orange_where_prediction_and_retraining_differ() -> None:
    """Three points by hand: 2.1 and 1.9 standard errors of 5 above the line, 2.1 below it."""
    checks = make_validation(3)
    for point, distance in zip(checks["points"]["loco"], (10.5, 9.5, -10.5), strict=True):
        point |= {"predicted": 1.0, "real": 1.0 + distance}
        point |= {"predicted_stderr": 3.0, "real_stderr": 4.0}
    orange, blue = style.CATEGORY_COLORS["harmful"], style.LINE_COLORS[INFLUENCESPACE]
    figure = validation.influence_validation(checks["points"], checks)
    assert dot_colors(figure.axes[0]) == [orange, blue, orange]
    assert "more than 2 of their" in figure.get_supxlabel().replace("\n", " ")
    for point in checks["points"]["loco"]:  # as with one seed
        point |= {"real_stderr": 0.0}
    figure = validation.influence_validation(checks["points"], checks)
    assert dot_colors(figure.axes[0]) == [blue, blue, blue]
    assert "orange" not in figure.get_supxlabel()


def test_validation_of_one_seed_claims_no_spread() -> None:
    figure, _ = validation_figure(20, n_seeds=1, spearman=None)
    png(figure)
    assert "retraining has one seed" in figure.get_supxlabel().replace("\n", " ")
    assert "Spearman – (ceiling –), slope –" in figure.axes[0].get_title(loc="left")
    figure, _ = validation_figure(20, spearman=-0.5)
    assert "Spearman −0.50" in figure.axes[0].get_title(loc="left")
    assert "mean over retraining seeds" in figure.get_supxlabel().replace("\n", " ")
