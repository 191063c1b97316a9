"""Figures of clusters, few and many."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from reporting import words
from reporting.figures import clusters, style
from tests.reporting.test_figures import (
    assert_no_overlap,
    bar_widths,
    columns_of,
    dots,
    influence_figure,
    make_categorization,
    make_terms,
    n_segments,
    png,
    texts,
    vertical_lines,
)


def test_extremes_of_few_and_many() -> None:
    assert clusters.extremes(3) == [0, 1, 2]
    assert clusters.extremes(100, n_each=2) == [0, 1, 98, 99]


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_cluster_sizes(n_clusters: int) -> None:
    sizes = columns_of(make_categorization(n_clusters))[3]
    figure = clusters.cluster_sizes(sizes, make_terms(n_clusters, nasty=True))
    png(figure)
    labelled = figure.axes[-1]
    falling = np.sort(sizes)[::-1]
    shown = falling if n_clusters <= 30 else np.r_[falling[:10], falling[-10:]]
    assert bar_widths(labelled) == list(shown)
    assert texts(labelled) == [f"{size:,}" for size in shown]
    assert_no_overlap(figure, labelled.get_yticklabels())
    assert_no_overlap(figure, labelled.texts)
    for text in labelled.texts:  # the median's line stays behind the numbers
        patch = text.get_bbox_patch()
        assert patch is not None
        assert to_hex(patch.get_facecolor()) == "#ffffff"
        assert all(line.get_zorder() < text.get_zorder() for line in labelled.lines)
    if n_clusters > 30:
        heights = [p.get_height() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
        assert heights == list(falling)
    title = figure.get_suptitle()
    assert f"{sizes.sum():,} training pairs in {words.count(n_clusters, 'cluster')}" == title


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_influence_scores(n_clusters: int) -> None:
    figure = influence_figure(n_clusters, nasty=True)
    png(figure)
    scores, _, categories, _ = columns_of(make_categorization(n_clusters))
    order = np.argsort(-scores)
    shown = order if n_clusters <= 30 else np.r_[order[:10], order[-10:]]
    labelled = figure.axes[-1]
    np.testing.assert_allclose(bar_widths(labelled), 100 * scores[shown])
    bars = [p for p in labelled.patches if isinstance(p, Rectangle)]
    assert [to_hex(p.get_facecolor()).upper() for p in bars] == [
        style.CATEGORY_COLORS[categories[k]].upper() for k in shown
    ]
    assert n_segments(labelled) == len(shown)
    assert_no_overlap(figure, labelled.get_yticklabels())
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        f"{c} ({int((categories == c).sum())})" for c in ("beneficial", "neutral", "harmful")
    ]
    if n_clusters > 30:
        assert n_segments(figure.axes[0]) == n_clusters
        np.testing.assert_allclose(dots(figure.axes[0])[:, 1], 100 * scores[order])
        assert_no_overlap(figure, [*legend.get_texts(), figure.axes[0].title])


def test_thresholds_are_drawn_only_where_the_scores_reach_them() -> None:
    assert vertical_lines(influence_figure(20).axes[0]) == {0.0, -0.1, 1.0}
    assert vertical_lines(influence_figure(20, scale=0.3).axes[0]) == {0.0, -0.1}
    assert vertical_lines(influence_figure(20, scale=0.01).axes[0]) == {0.0}


def test_error_bars_of_influence_say_what_they_hold() -> None:
    note = influence_figure(20).get_supxlabel().replace("\n", " ")
    assert "pairs sampled, the reference models and the folds retrained" in note


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_categorization(n_clusters: int) -> None:
    categorization = make_categorization(n_clusters)
    figure = clusters.cluster_categorization(categorization)
    png(figure)
    bars, dots = figure.axes
    expected = []
    for category in ("beneficial", "neutral", "harmful"):
        members = [c for c in categorization if c["category"] == category]
        expected += [sum(c[key] for c in members) for key in ("pairs_kept", "pairs_dropped")]
    assert bar_widths(bars) == expected
    assert f"{expected[2]:,} kept, {expected[3]:,} dropped" in texts(bars)[1]
    offsets = np.asarray(dots.collections[0].get_offsets())
    np.testing.assert_allclose(
        offsets[:, 1], [100 * c["pairs_kept"] / c["size"] for c in categorization]
    )
    assert_no_overlap(figure, [*bars.texts, bars.title, dots.title])
