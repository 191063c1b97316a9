"""Figures of clusters: their sizes, their influence, what was kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reporting.figures.style import (
    BESIDE,
    CATEGORY_COLORS,
    ERROR_STYLE,
    INK,
    MUTED,
    ON_WHITE,
    in_style,
    new_figure,
    round_ticks,
    style_axes,
)
from reporting.words import CATEGORIES, cluster_label, count

MAX_LABELLED = 30  # more clusters than this are drawn without labels, their extremes beside
N_EXTREMES = 10
INFLUENCE_UNIT = "change of the validation loss without the cluster (%)"


@in_style
def cluster_sizes(sizes: Int[np.ndarray, " K"], terms: Sequence[Sequence[str]]) -> Figure:
    """How many pairs each cluster holds, largest first; the extremes with their terms."""
    n, median = len(sizes), float(np.median(sizes))
    order = np.argsort(-sizes, kind="stable")
    title = f"{sizes.sum():,} training pairs in {count(n, 'cluster')}"
    width = 11.0 if n > MAX_LABELLED else 8.0
    note = f"Dashed: the median, {median:g} pairs."
    figure = new_figure(width, _cluster_height(n), title, note)
    overview, labelled = _cluster_axes(figure, n)
    shown = order[extremes(n)]
    title = f"The {N_EXTREMES} largest and the {N_EXTREMES} smallest" if n > len(shown) else ""
    style_axes(labelled, title, x="pairs")
    rows = _label_clusters(labelled, n, [cluster_label(int(k), terms[k]) for k in shown])
    labelled.barh(rows, sizes[shown], 0.72, color=MUTED)
    for row, size in zip(rows, sizes[shown], strict=True):
        labelled.annotate(f"{size:,}", (size, row), **BESIDE, bbox=ON_WHITE)
    labelled.set_xlim(0, 1.14 * sizes.max())
    round_ticks(labelled.xaxis, 8, whole=True)
    median_line: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": "--"}
    if overview is None:
        labelled.axvline(median, **median_line)
    else:
        style_axes(overview, "All clusters", x="clusters, largest first", y="pairs", grid="y")
        overview.bar(np.arange(1, n + 1), sizes[order], width=1.0, color=MUTED)
        overview.axhline(median, **median_line)
        overview.set_xlim(0.5, n + 0.5)
        round_ticks(overview.yaxis, 8, whole=True)
    return figure


@in_style
def influence_scores(
    scores: Float[np.ndarray, " K"],
    stderr: Float[np.ndarray, " K"],
    terms: Sequence[Sequence[str]],
    categories: Shaped[np.ndarray, " K"],
    *,
    harmful_threshold: float,
    beneficial_threshold: float,
) -> Figure:
    """Influence of every cluster with its standard error, most beneficial first, by category.

    Args:
        scores: relative change of the validation loss without the cluster.
        stderr: standard errors of the scores.
        terms: words of each cluster.
        categories: `harmful`, `neutral` or `beneficial` for each cluster.
        harmful_threshold: scores below are called harmful where their sign is certain.
        beneficial_threshold: scores above are called beneficial where their sign is certain.
    """
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    percent, errors = 100 * scores, 100 * stderr
    thresholds = (100 * harmful_threshold, 100 * beneficial_threshold)
    colors = np.array([CATEGORY_COLORS[c] for c in categories])
    title = f"Influence of {count(n, 'cluster')} on the validation loss"
    note = (
        "Positive: the loss would rise without the cluster, so the cluster helps. Error bars: "
        "standard error from the pairs sampled, the reference models and the folds retrained, as "
        "far as the estimator uses them. Dotted: thresholds, {:+g} % and {:+g} % (drawn where the "
        "scores reach them); beyond them a cluster is coloured where its sign is certain."
    )
    width = 11.0 if n > MAX_LABELLED else 8.0
    figure = new_figure(width, _cluster_height(n) + 0.3, title, note.format(*thresholds))
    overview, labelled = _cluster_axes(figure, n)
    if overview is not None:
        _all_influences(overview, percent[order], errors[order], categories[order])
        _zero_and_thresholds(overview, thresholds, "y")
    shown = order[extremes(n)]
    title = f"The {N_EXTREMES} highest and the {N_EXTREMES} lowest" if n > len(shown) else ""
    style_axes(labelled, title, x=INFLUENCE_UNIT)
    rows = _label_clusters(labelled, n, [cluster_label(int(k), terms[k]) for k in shown])
    labelled.barh(rows, percent[shown], 0.72, color=colors[shown])
    labelled.errorbar(percent[shown], rows, xerr=errors[shown], **ERROR_STYLE)
    _zero_and_thresholds(labelled, thresholds, "x")
    round_ticks(labelled.xaxis, 7)
    _category_legend(labelled if overview is None else overview, categories)
    return figure


def _all_influences(
    axes: Axes,
    percent: Float[np.ndarray, " K"],
    errors: Float[np.ndarray, " K"],
    categories: Shaped[np.ndarray, " K"],
) -> None:
    """One dot a cluster with its standard error, from left to right, coloured by category."""
    ranks = np.arange(1, len(percent) + 1)
    x = "clusters, most beneficial first"
    style_axes(axes, "All clusters", x=x, y=INFLUENCE_UNIT, grid="y")
    axes.vlines(ranks, percent - errors, percent + errors, color=MUTED, linewidth=0.8)
    sns.scatterplot(
        x=ranks,
        y=percent,
        hue=categories,
        palette=CATEGORY_COLORS,
        s=min(36, max(6, 2400 / len(ranks))),
        linewidth=0,
        legend=False,
        zorder=2,
        ax=axes,
    )
    axes.set_xlim(0, len(ranks) + 1)


@in_style
def cluster_categorization(categorization: Sequence[Mapping[str, Any]]) -> Figure:
    """Pairs kept and dropped in each category, and the share kept of every cluster."""
    counts = {
        category: [
            sum(c[key] for c in categorization if c["category"] == category)
            for key in ("pairs_kept", "pairs_dropped")
        ]
        for category in reversed(CATEGORIES)
    }
    sizes = np.array([c["size"] for c in categorization])
    kept = np.array([c["pairs_kept"] for c in categorization])
    title = f"{kept.sum():,} of {sizes.sum():,} training pairs kept, by their cluster's category"
    note = (
        "Solid: kept, hatched: dropped. Right: one dot a cluster, larger with more pairs. "
        "Categories speak of leaving whole clusters out; pairs are dropped by their own values."
    )
    figure = new_figure(11.0, 3.9, title, note)
    bars, dots = figure.subplots(1, 2, width_ratios=[1.1, 1])
    style_axes(bars, "Pairs by category", x="pairs")
    for row, (category, (n_kept, n_dropped)) in enumerate(counts.items()):
        color = CATEGORY_COLORS[category]
        bars.barh(row, n_kept, 0.6, color=color)
        dropped = {"color": "white", "edgecolor": color, "hatch": "////", "linewidth": 0}
        bars.barh(row, n_dropped, 0.6, left=n_kept, **dropped)
        n_clusters = sum(c["category"] == category for c in categorization)
        text = f"{count(n_clusters, 'cluster')}:\n{n_kept:,} kept, {n_dropped:,} dropped"
        bars.annotate(text, (n_kept + n_dropped, row), **BESIDE, bbox=ON_WHITE)
    bars.set_yticks(range(3), list(counts))
    bars.set_ylim(2.6, -0.6)
    bars.set_xlim(0, 1.55 * max(map(sum, counts.values())))
    round_ticks(bars.xaxis, 8, whole=True)
    style_axes(dots, "Clusters", x=INFLUENCE_UNIT, y="pairs kept (%)")
    category_dots(dots, categorization, 100 * kept / sizes, 10 + 90 * sizes / sizes.max())
    dots.set_ylim(-6, 106)
    return figure


def category_dots(
    axes: Axes,
    categorization: Sequence[Mapping[str, Any]],
    heights: Float[np.ndarray, " K"],
    areas: Float[np.ndarray, " K"] | float,
) -> None:
    """One dot a cluster over its influence, coloured by category."""
    categories = np.array([c["category"] for c in categorization])
    sns.scatterplot(
        x=[c["influence_percent"] for c in categorization],
        y=heights,
        hue=categories,
        palette=CATEGORY_COLORS,
        s=areas,
        alpha=0.65,
        linewidth=0,
        legend=False,
        ax=axes,
    )
    axes.axvline(0, color=INK, linewidth=1)
    _category_legend(axes, categories)


def _category_legend(axes: Axes, categories: Shaped[np.ndarray, " K"]) -> None:
    """The categories with their numbers of clusters, above the panel at the right."""
    handles = [
        Patch(color=CATEGORY_COLORS[c], label=f"{c} ({int((categories == c).sum())})")
        for c in reversed(CATEGORIES)
    ]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.02, 0.985),
        ncols=3,
        handlelength=1,
        columnspacing=1,
        handletextpad=0.4,
    )


def extremes(n: int, n_each: int = N_EXTREMES, max_all: int = MAX_LABELLED) -> list[int]:
    """Ranks worth a label: all of a few, else the first and the last `n_each`."""
    if n <= max_all:
        return list(range(n))
    return [*range(n_each), *range(n - n_each, n)]


def _cluster_axes(figure: Figure, n_clusters: int) -> tuple[Axes | None, Axes]:
    """A panel for all clusters, where they are too many to label, and one with labels."""
    if n_clusters <= MAX_LABELLED:
        return None, figure.subplots()
    overview, labelled = figure.subplots(1, 2, width_ratios=[1.25, 1])
    return overview, labelled


def _label_clusters(axes: Axes, n: int, labels: Sequence[str]) -> list[float]:
    """Names the rows of the `extremes` of n clusters; a gap where others are left out."""
    rows = [i + (0.8 if rank != i else 0.0) for i, rank in enumerate(extremes(n))]
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(rows[-1] + 0.7, -0.7)
    return rows


def _cluster_height(n_clusters: int) -> float:
    return 1.6 + 0.21 * len(extremes(n_clusters)) + 0.4


def _zero_and_thresholds(axes: Axes, thresholds: tuple[float, float], axis: str) -> None:
    """The zero line, and the thresholds that the axis reaches without being stretched."""
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    draw = axes.axvline if axis == "x" else axes.axhline
    draw(0, color=INK, linewidth=1)
    for name, threshold in zip(("harmful", "beneficial"), thresholds, strict=True):
        if low <= threshold <= high:
            draw(threshold, color=CATEGORY_COLORS[name], linewidth=1, linestyle=":")
