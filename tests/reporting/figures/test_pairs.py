"""Figures of pairs: their values and their weights."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle, StepPatch

from reporting.figures import pairs
from tests.reporting.test_figures import (
    NASTY,
    assert_no_overlap,
    bar_widths,
    make_categorization,
    make_kinds,
    png,
    row_names,
    texts,
    vertical_lines,
)


@pytest.mark.parametrize("near_copies", [True, False])
@pytest.mark.parametrize("influence", [True, False])
def test_cells(near_copies: bool, influence: bool) -> None:
    kinds = make_kinds(near_copies=near_copies, influence=influence)
    values = np.random.default_rng(0).normal(0, 1, 500)
    kept = values > -0.8
    faulty = values < -1
    figure = pairs.cells(values, kept, faulty, kinds)
    png(figure)
    histogram, shares, *rest = figure.axes
    assert len(rest) == influence
    assert figure.get_suptitle().startswith(f"{(~kept).sum()} of 500 training pairs")
    heights = [p.get_height() for p in histogram.patches if isinstance(p, Rectangle)]
    assert sum(heights[:40]) == kept.sum()
    assert sum(heights[40:]) == (~kept).sum()
    outline = [p for p in histogram.patches if isinstance(p, StepPatch)]
    assert [sum(p.get_data()[0]) for p in outline] == [faulty.sum()]
    legend = histogram.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        f"kept ({kept.sum()})",
        f"dropped ({(~kept).sum()})",
        f"known faults ({faulty.sum()})",
    ]
    assert bar_widths(shares)[1::2] == [100 * k["kept"] / k["pairs"] for k in kinds]
    assert row_names(shares)[0] == "lowest quarter"
    assert ("second quarter, near copies" in row_names(shares)) == near_copies
    assert texts(shares)[0] == "300 of 1,000"
    if influence:
        assert bar_widths(rest[0]) == [k["influence"] for k in kinds]
        assert texts(rest[0])[0] == "−150"
        assert "Influence:" in figure.get_supxlabel()
    else:
        assert "Influence:" not in figure.get_supxlabel()
    assert_no_overlap(figure, [*shares.texts, shares.title, histogram.title])


def test_cells_of_one_kind_without_known_faults() -> None:
    (kind,) = make_kinds(near_copies=False)[:1]
    kind |= {"agreement": NASTY, "pairs": 1, "kept": 1, "influence": 0.0}
    figure = pairs.cells(np.zeros(1), np.ones(1, dtype=bool), None, [kind])
    png(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert "known faults" not in " ".join(t.get_text() for t in legend.get_texts())
    assert bar_widths(figure.axes[1])[1] == 100.0


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_weights(n_clusters: int) -> None:
    categorization = make_categorization(n_clusters)
    weights = {str(k): 0.5 + k % 3 for k in range(n_clusters)}
    samples = np.linspace(0.5, 1.5, 200)
    figure = pairs.weight_distribution(samples, weights, categorization)
    png(figure)
    histogram, dots = figure.axes
    bars = [p.get_height() for p in histogram.patches if isinstance(p, Rectangle)]
    assert sum(bars) == 200
    offsets = np.asarray(dots.collections[0].get_offsets())
    np.testing.assert_allclose(offsets[:, 1], [weights[str(c["cluster"])] for c in categorization])
    low, high = dots.get_ylim()
    assert low < 0
    assert high > max(weights.values())
    assert 1.0 in vertical_lines(histogram)


@pytest.mark.parametrize(("n_raised", "scale"), [(10, "log"), (50, "linear")])
def test_few_raised_pairs_are_seen_beside_many_others(n_raised: int, scale: str) -> None:
    samples = np.r_[np.full(990, 0.9), np.full(n_raised, 2.0)]
    figure = pairs.weight_distribution(samples, {"0": 1.0}, make_categorization(1))
    png(figure)
    histogram = figure.axes[0]
    assert histogram.get_yscale() == scale
    assert ("logarithmic" in histogram.get_ylabel()) == (scale == "log")
    bars = [p.get_height() for p in histogram.patches if isinstance(p, Rectangle)]
    assert sorted(bars)[-2:] == [n_raised, 990]


def test_equal_weights_are_one_bar() -> None:
    categorization = make_categorization(3)
    cluster_weights = dict.fromkeys(("0", "1", "2"), 1.0)
    figure = pairs.weight_distribution(np.ones(200), cluster_weights, categorization)
    png(figure)
    histogram, _ = figure.axes
    (bar,) = (p for p in histogram.patches if isinstance(p, Rectangle))
    assert bar.get_height() == 200
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(1)
    assert histogram.get_title(loc="left") == "Every kept pair weighs the same"
    assert "No pair counts more than another" in figure.get_supxlabel()
