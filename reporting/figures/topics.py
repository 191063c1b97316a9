"""Figures of clusters and pairs: sizes, influence, what was kept, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reporting.figures.style import (
    BESIDE,
    CATEGORY_COLORS,
    ERROR_STYLE,
    INK,
    LINE_COLORS,
    MUTED,
    ON_WHITE,
    PALE,
    new_figure,
    style_axes,
)
from reporting.words import (
    CATEGORIES,
    CHECK_LABELS,
    INFLUENCESPACE,
    LABEL_WIDTH,
    cluster_label,
    count,
    plain,
    signed,
)

MAX_LABELLED = 30  # more clusters than this are drawn without labels, their extremes beside
N_EXTREMES = 10
N_VALUE_BINS = 40
COMMON_RANGE = 3.0  # both axes take their common range if this many times the smaller holds it
INFLUENCE_UNIT = "change of the validation loss without the cluster (%)"


# --- Clusters ---------------------------------------------------------------------------------


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
    labelled.xaxis.set_major_formatter("{x:,g}")
    median_line: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": "--"}
    if overview is None:
        labelled.axvline(median, **median_line)
    else:
        style_axes(overview, "All clusters", x="clusters, largest first", y="pairs", grid="y")
        overview.bar(np.arange(1, n + 1), sizes[order], width=1.0, color=MUTED)
        overview.axhline(median, **median_line)
        overview.set_xlim(0.5, n + 0.5)
    return figure


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
        ranks, x = np.arange(1, n + 1), "clusters, most beneficial first"
        style_axes(overview, "All clusters", x=x, y=INFLUENCE_UNIT, grid="y")
        lows, highs = percent - errors, percent + errors
        overview.vlines(ranks, lows[order], highs[order], color=MUTED, linewidth=0.8)
        overview.scatter(ranks, percent[order], s=max(4, 900 / n), c=colors[order], zorder=2)
        _zero_and_thresholds(overview, thresholds, "y")
    shown = order[extremes(n)]
    title = f"The {N_EXTREMES} highest and the {N_EXTREMES} lowest" if n > len(shown) else ""
    style_axes(labelled, title, x=INFLUENCE_UNIT)
    rows = _label_clusters(labelled, n, [cluster_label(int(k), terms[k]) for k in shown])
    labelled.barh(rows, percent[shown], 0.72, color=colors[shown])
    labelled.errorbar(percent[shown], rows, xerr=errors[shown], **ERROR_STYLE)
    _zero_and_thresholds(labelled, thresholds, "x")
    labelled.xaxis.set_major_locator(MaxNLocator(nbins=5))
    _category_legend(labelled if overview is None else overview, categories)
    return figure


def _zero_and_thresholds(axes: Axes, thresholds: tuple[float, float], axis: str) -> None:
    """The zero line, and the thresholds that the axis reaches without being stretched."""
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    draw = axes.axvline if axis == "x" else axes.axhline
    draw(0, color=INK, linewidth=1)
    for name, threshold in zip(("harmful", "beneficial"), thresholds, strict=True):
        if low <= threshold <= high:
            draw(threshold, color=CATEGORY_COLORS[name], linewidth=1, linestyle=":")


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
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
        handlelength=1,
        columnspacing=1,
        handletextpad=0.4,
    )


def influence_validation(
    points: Mapping[str, Sequence[Mapping[str, float]]],
    agreement: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Real against predicted change of the validation loss, one panel a check.

    Args:
        points: check -> one entry a point, with `predicted` and `real` change in percent of the
            validation loss and `predicted_stderr` and `real_stderr`.
        agreement: check -> `estimator` with its `spearman` and `slope`, and the `ceiling`.
    """
    n = len(points["loco"])
    title = f"Does the estimate match retraining? Tried on {count(n, 'cluster')}"
    spread = any(p["real_stderr"] for p in points["loco"])
    note = (
        "Dashed: real equals predicted (drawn where in reach). Bars: standard error of the "
        + (
            "estimate and of the mean over retraining seeds. "
            if spread
            else "estimate; retraining has one seed, so that its own is not known. "
        )
        + "Ceiling: the rank correlation (Spearman) that a perfect prediction would reach with "
        "retraining as noisy as this."
    )
    figure = new_figure(11.0, 6.4, title, note)
    panels = figure.subplot_mosaic(
        [["loco", "small_weight"], ["loco", "lds"]], width_ratios=[1.65, 1]
    )
    loss = "change of the validation loss"
    labels = {
        "loco": (
            f"predicted {loss} when the cluster is left out (%)",
            f"real {loss} after retraining without it (%)",
        ),
        "small_weight": ("predicted change (%)", "real change (%)"),
        "lds": ("predicted change: sum over the half (%)", "real change (%)"),
    }
    for check, axes in panels.items():
        found = agreement[check]
        numbers = [found["estimator"]["spearman"], found["ceiling"], found["estimator"]["slope"]]
        spearman, ceiling, slope = (
            "–" if x is None else f"{x:.2f}".replace("-", "−") for x in numbers
        )
        heading = f"{CHECK_LABELS[check]}\nSpearman {spearman} (ceiling {ceiling}), slope {slope}"
        style_axes(axes, heading, x=labels[check][0], y=labels[check][1], grid="both")
        _predicted_and_real(axes, points[check], 1.0 if check == "loco" else 0.6)
    return figure


def _predicted_and_real(axes: Axes, points: Sequence[Mapping[str, float]], scale: float) -> None:
    """Points with error bars, the line on which real equals predicted, and zero where in reach."""
    x, y, x_error, y_error = (
        np.array([p[name] for p in points])
        for name in ("predicted", "real", "predicted_stderr", "real_stderr")
    )
    style = ERROR_STYLE | {"ecolor": MUTED, "elinewidth": 0.9, "capsize": 0}
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, **style)
    area = scale * min(42.0, max(12.0, 2400 / len(x)))
    axes.scatter(
        x, y, area, LINE_COLORS[INFLUENCESPACE], edgecolor="white", linewidth=0.5, zorder=3
    )
    low_x, high_x, low_y, high_y = *axes.get_xlim(), *axes.get_ylim()
    low, high = min(low_x, low_y), max(high_x, high_y)
    if high - low < COMMON_RANGE * min(high_x - low_x, high_y - low_y):
        low_x, high_x, low_y, high_y = low, high, low, high
    axes.axline((low_x, low_x), slope=1, color=INK, linewidth=1, linestyle="--")
    if low_x < 0 < high_x:
        axes.axvline(0, color=INK, linewidth=0.8)
    if low_y < 0 < high_y:
        axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlim=(low_x, high_x), ylim=(low_y, high_y))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))


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
        "Solid: kept, hatched: dropped. Right: one dot a cluster, its area the cluster's pairs. "
        "Categories speak of leaving whole clusters out; pairs are dropped by their own values."
    )
    figure = new_figure(11.0, 3.9, title, note)
    bars, dots = figure.subplots(1, 2, width_ratios=[1.1, 1])
    style_axes(bars, "Pairs by category", x="pairs")
    for row, (category, (n_kept, n_dropped)) in enumerate(counts.items()):
        color = CATEGORY_COLORS[category]
        bars.barh(row, n_kept, 0.6, color=color)
        bars.barh(row, n_dropped, 0.6, left=n_kept, color="white", edgecolor=color, hatch="////")
        n_clusters = sum(c["category"] == category for c in categorization)
        text = f"{count(n_clusters, 'cluster')}:\n{n_kept:,} kept, {n_dropped:,} dropped"
        bars.annotate(text, (n_kept + n_dropped, row), **BESIDE)
    bars.set_yticks(range(3), list(counts))
    bars.set_ylim(2.6, -0.6)
    bars.set_xlim(0, 1.55 * max(map(sum, counts.values())))
    bars.xaxis.set_major_formatter("{x:,g}")
    style_axes(dots, "Clusters", x=INFLUENCE_UNIT, y="pairs kept (%)")
    _category_dots(dots, categorization, 100 * kept / sizes, 10 + 90 * sizes / sizes.max())
    dots.set_ylim(-6, 106)
    return figure


def _category_dots(
    axes: Axes,
    categorization: Sequence[Mapping[str, Any]],
    heights: Float[np.ndarray, " K"],
    areas: Float[np.ndarray, " K"] | float,
) -> None:
    """One dot a cluster over its influence, coloured by category."""
    influence = [c["influence_percent"] for c in categorization]
    colors = [CATEGORY_COLORS[c["category"]] for c in categorization]
    axes.scatter(influence, heights, areas, c=colors, alpha=0.65, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    _category_legend(axes, np.array([c["category"] for c in categorization]))


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
        axes.barh(row, percent, 0.72, color=LINE_COLORS[INFLUENCESPACE])
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
    axes.locator_params(axis="x", nbins=5)


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
    edges = np.histogram_bin_edges(values, N_VALUE_BINS)
    groups = {
        "kept": (values[kept], LINE_COLORS[INFLUENCESPACE]),
        "dropped": (values[~kept], MUTED),
    }
    axes.hist(
        [group for group, _ in groups.values()],
        edges.tolist(),
        stacked=True,
        color=[color for _, color in groups.values()],
        label=[f"{name} ({len(group):,})" for name, (group, _) in groups.items()],
    )
    if faulty is not None:
        color, label = CATEGORY_COLORS["harmful"], f"known faults ({int(faulty.sum()):,})"
        heights, _ = np.histogram(values[faulty], edges)
        axes.stairs(heights, edges, color=color, linewidth=1.8, label=label)
    style_axes(axes, "Values of the pairs", x="value (standard deviations)", y="pairs", grid="y")
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="upper left", handlelength=1.2)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter("{x:,g}")


def effective_size(sample_weights: Float[np.ndarray, " m"]) -> float:
    """How many equally weighted pairs have the same variance: (sum w)^2 / sum w^2, Kish (1965)."""
    return float(sample_weights.sum() ** 2 / (sample_weights**2).sum())


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
        + "Right: one dot a cluster; weight 0 is a cluster of which nothing was kept."
    )
    figure = new_figure(11.0, 3.9, title, note)
    histogram, dots = figure.subplots(1, 2)
    if equal:
        heading, weight = "Every kept pair weighs the same", float(sample_weights[0])
        histogram.bar(weight, m, 0.2, color=LINE_COLORS[INFLUENCESPACE])
        histogram.annotate(f"{m:,}", (weight + 0.1, m / 2), **BESIDE)
        histogram.set_xlim(0, 2 * weight)
        histogram.set_xticks([0, weight], ["0", f"{weight:g}"])
    else:
        heading = "Pairs (dashed: weight one)"
        low, high = min(0.0, float(sample_weights.min())), max(2.0, float(sample_weights.max()))
        bins = np.linspace(low, 1.02 * high, 41)
        histogram.hist(sample_weights, bins=bins, color=LINE_COLORS[INFLUENCESPACE])
        histogram.axvline(1, color=INK, linewidth=1, linestyle="--")
    style_axes(histogram, heading, x="weight of a pair", y="pairs", grid="y")
    style_axes(dots, "Clusters", x=INFLUENCE_UNIT, y="weight of its pairs")
    heights = np.array([cluster_weights[str(c["cluster"])] for c in categorization])
    _category_dots(dots, categorization, heights, 28.0)
    dots.axhline(1, color=INK, linewidth=1, linestyle="--")
    top = max(1.0, float(heights.max()))
    dots.set_ylim(-0.06 * top, 1.1 * top)
    return figure
