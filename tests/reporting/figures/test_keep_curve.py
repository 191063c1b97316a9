"""The figure of how much to keep."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from attribution.keep_curve import GRID
from reporting.figures.keep_curve import keep_curve
from tests.reporting.test_figures import (
    assert_no_overlap,
    dots,
    make_curve,
    png,
    vertical_lines,
)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_both_panels_show_the_curve_its_errors_and_what_was_measured() -> None:
    curve = make_curve()
    figure = keep_curve(curve, 0.8)
    png(figure)
    assert figure.get_suptitle() == "Best share to keep: 74 %; highest at 68 to 80"
    values = (
        (curve.recall, curve.recall_stderr, curve.measured_recall),
        (curve.loss, curve.loss_stderr, curve.measured_loss),
    )
    for axes, (line, errors, measured) in zip(figure.axes, values, strict=True):
        drawn = axes.lines[0]
        assert np.allclose(np.asarray(drawn.get_xdata(), float), 100 * GRID)
        assert np.allclose(np.asarray(drawn.get_ydata(), float), line)
        assert np.allclose(dots(axes), np.column_stack([100 * curve.measured_shares, measured]))
        (band,) = (c for c in axes.collections if isinstance(c, FillBetweenPolyCollection))
        corners = band.get_paths()[0].vertices
        at_all = np.asarray(corners)[np.isclose(np.asarray(corners)[:, 0], 100.0), 1]
        assert at_all.min() == pytest.approx(line[-1] - errors[-1])
        assert at_all.max() == pytest.approx(line[-1] + errors[-1])
    note = figure.get_supxlabel().replace("\n", " ")
    assert "390 steps with 2 seeds, asked by 764 trusted validation pairs" in note


def test_the_share_kept_the_best_and_that_of_faults_are_marked() -> None:
    figure = keep_curve(make_curve(), 0.8)
    png(figure)
    for axes in figure.axes:
        assert vertical_lines(axes) == {80.0, 74.0}
        (span,) = axes.patches
        box = span.get_extents().transformed(axes.transData.inverted())
        assert (box.x0, box.x1) == pytest.approx((68.0, 80.0))
        bottom, top = axes.get_ylim()  # no dot lies behind the strip of faults
        assert dots(axes)[:, 1].min() > bottom + 0.06 * (top - bottom)
        *_, interval, share = axes.lines
        assert np.sort(np.asarray(interval.get_xdata(), float)) == pytest.approx([77.3, 80.9])
        assert np.asarray(share.get_xdata(), float) == pytest.approx([79.1])
    (by_chance,) = (line for line in figure.axes[0].lines if line.get_marker() == "X")
    assert np.allclose(by_chance.get_xydata(), [[55.0, 57.1]])
    assert legend_texts(figure)[2:] == [
        "kept: 80 %",
        "best: 74 %",
        "highest (95 % interval)",
        "do not look faulty:\nall but 20.9 %\n(19.1 to 22.7)",
    ]
    assert_no_overlap(figure, [*(axes.title for axes in figure.axes), *figure.legends[0].texts])


def test_what_is_not_known_is_not_drawn_and_a_small_share_has_its_place() -> None:
    figure = keep_curve(make_curve(fault_share=None), 0.1)
    png(figure)
    assert not any("faulty" in text for text in legend_texts(figure))
    for axes in figure.axes:
        assert vertical_lines(axes) == {10.0, 74.0}
        assert axes.get_xlim()[0] < 10.0
