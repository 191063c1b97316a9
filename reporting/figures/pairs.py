"""Figures of pairs: which are thrown away, and the weights of those that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from baselines import INFLUENCESPACE
from reporting.figures.clusters import INFLUENCE_UNIT, category_dots
from reporting.figures.histograms import BARS, N_BINS, split_histogram
from reporting.figures.style import (
    BESIDE,
    CATEGORY_COLORS,
    INK,
    PALE,
    in_style,
    is_steep,
    line_color,
    make_logarithmic,
    new_figure,
    round_ticks,
    style_axes,
)
from reporting.verdicts import effective_size
from reporting.words import LABEL_WIDTH, plain, signed


@in_style
def cells(
    values: Float[np.ndarray, " n"],
    kept: Bool[np.ndarray, " n"],
    faulty: Bool[np.ndarray, " n"] | None,
    kinds: Sequence[Mapping[str, Any]],
    caution: str = "",
) -> Figure:
    """Which pairs are thrown away: their values, and what is kept of each kind of pair.

    Args:
        values: what decides, in standard deviations.
        kept: which pairs stay.
        faulty: which are known to be faulty, where faults are known.
        kinds: `agreement`, `near_copies`, `pairs`, `kept` and the mean `influence` of each kind.
        caution: a sentence on how far influence is to be believed.
    """
    n_dropped = len(kept) - int(kept.sum())
    title = f"{n_dropped:,} of {len(kept):,} training pairs are thrown away, by their value"
    note = (
        "Value: influence plus image-text agreement less near copies, in standard deviations. Near "
        "copies: the set has a copy of the image with a better caption. "
    )
    with_influence = all(kind["influence"] is not None for kind in kinds)
    if with_influence:
        note += (
            "Influence: without such a pair the validation loss changes by this many percent over "
            "the number of pairs; negative hurts."
        ) + (f" {caution}" if caution else "")
    figure = new_figure(12.0, max(4.2, 2.0 + 0.3 * len(kinds)), title, note)
    ratios = [1.3, 1, 0.8] if with_influence else [1.3, 1]
    histogram, shares, *rest = figure.subplots(1, len(ratios), width_ratios=ratios)
    _value_histogram(histogram, values, kept, faulty)
    _kept_of_kinds(shares, kinds)
    for axes in rest:
        _influence_of_kinds(axes, [float(kind["influence"]) for kind in kinds])
    return figure


def _kept_of_kinds(axes: Axes, kinds: Sequence[Mapping[str, Any]]) -> None:
    style_axes(axes, "Kept, by image-text agreement", x="pairs kept (%)")
    labels = [
        kind["agreement"].removesuffix(" of agreement")
        + (", near copies" if kind["near_copies"] else "")
        for kind in kinds
    ]
    _label_kinds(axes, [plain(label, LABEL_WIDTH) for label in labels])
    for row, kind in enumerate(kinds):
        percent = 100 * kind["kept"] / kind["pairs"]
        axes.barh(row, 100, 0.72, color=PALE)
        axes.barh(row, percent, 0.72, color=line_color(INFLUENCESPACE))
        axes.annotate(f"{kind['kept']:,} of {kind['pairs']:,}", (100, row), **BESIDE)
    axes.set_xlim(0, 160)
    axes.set_xticks([0, 50, 100])


def _influence_of_kinds(axes: Axes, means: Sequence[float]) -> None:
    style_axes(axes, "Mean influence of a pair", x="% of the validation loss / n")
    _label_kinds(axes, [""] * len(means))
    colors = [CATEGORY_COLORS["beneficial" if mean > 0 else "harmful"] for mean in means]
    axes.barh(range(len(means)), means, 0.72, color=colors)
    axes.axvline(0, color=INK, linewidth=1)
    for row, mean in enumerate(means):
        text = signed(mean).replace("-", "−")
        axes.annotate(text, (max(mean, 0.0), row), **BESIDE)
    low, high = min(0.0, *means), max(0.0, *means)
    reach = (high - low) or 1.0
    axes.set_xlim(low - 0.05 * reach, high + 0.3 * reach)
    round_ticks(axes.xaxis, 5)


def _label_kinds(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _value_histogram(
    axes: Axes,
    values: Float[np.ndarray, " n"],
    kept: Bool[np.ndarray, " n"],
    faulty: Bool[np.ndarray, " n"] | None,
) -> None:
    """Values of kept and dropped pairs, one upon the other, and those of faulty ones as a line."""
    edges = np.histogram_bin_edges(values, N_BINS)
    entries: list[Patch] = [*split_histogram(axes, values, kept, edges, ("kept", "dropped"))]
    if faulty is not None:
        color, label = CATEGORY_COLORS["harmful"], f"known faults ({int(faulty.sum()):,})"
        heights, _ = np.histogram(values[faulty], edges)
        entries.append(axes.stairs(heights, edges, color=color, linewidth=1.8, label=label))
    style_axes(axes, "Values of the pairs", x="value (standard deviations)", y="pairs", grid="y")
    axes.legend(handles=entries, loc="upper left")
    round_ticks(axes.yaxis, 6, whole=True)


@in_style
def weight_distribution(
    sample_weights: Float[np.ndarray, " m"],
    cluster_weights: Mapping[str, float],
    categorization: Sequence[Mapping[str, Any]],
) -> Figure:
    """How the weights of the kept pairs are distributed, and which influence earned which."""
    m = len(sample_weights)
    equal = np.ptp(sample_weights) == 0
    title = f"Weights of the {m:,} kept pairs"
    note = (
        "Mean one. "
        + (
            "No pair counts more than another. "
            if equal
            else f"They count like {effective_size(sample_weights):,.0f} pairs of equal weight. "
        )
        + "Right: one dot a cluster; at 0 nothing of it was kept, near 0 what looks faulty."
    )
    figure = new_figure(11.0, 3.9, title, note)
    histogram, dots = figure.subplots(1, 2)
    if equal:
        _one_weight(histogram, float(sample_weights[0]), m)
    else:
        _weight_histogram(histogram, sample_weights)
    style_axes(dots, "Clusters", x=INFLUENCE_UNIT, y="weight of its pairs")
    heights = np.array([cluster_weights[str(c["cluster"])] for c in categorization])
    category_dots(dots, categorization, heights, 28.0)
    dots.axhline(1, color=INK, linewidth=1, linestyle="--")
    top = max(1.0, float(heights.max()))
    dots.set_ylim(-0.06 * top, 1.1 * top)
    return figure


def _one_weight(axes: Axes, weight: float, m: int) -> None:
    """The one bar of m pairs that weigh the same."""
    axes.bar(weight, m, 0.2, color=line_color(INFLUENCESPACE))
    axes.annotate(f"{m:,}", (weight + 0.1, m / 2), **BESIDE)
    heading = "Every kept pair weighs the same"
    style_axes(axes, heading, x="weight of a pair", y="pairs", grid="y")
    axes.set_xlim(0, 2 * weight)
    axes.set_xticks([0, weight], ["0", f"{weight:g}"])
    round_ticks(axes.yaxis, 6, whole=True)


def _weight_histogram(axes: Axes, sample_weights: Float[np.ndarray, " m"]) -> None:
    """How many pairs have which weight; logarithmic where few bars would be too low to see."""
    low, high = min(0.0, float(sample_weights.min())), max(2.0, float(sample_weights.max()))
    edges = np.linspace(low, 1.02 * high, N_BINS + 1)
    sns.histplot(x=sample_weights, bins=edges, color=line_color(INFLUENCESPACE), ax=axes, **BARS)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    heights, _ = np.histogram(sample_weights, edges)
    steep = is_steep(heights[heights > 0].astype(float))
    unit = "pairs (logarithmic)" if steep else "pairs"
    style_axes(axes, "Pairs (dashed: weight one)", x="weight of a pair", y=unit, grid="y")
    if steep:
        make_logarithmic(axes.yaxis, subs=(1.0,))
        axes.set_ylim(0.7, 2 * heights.max())
    else:
        round_ticks(axes.yaxis, 6, whole=True)
