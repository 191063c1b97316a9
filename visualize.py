"""Figures of a run, from plain arrays and dicts, as matplotlib figures that the caller saves.

Object-oriented matplotlib alone, without pyplot or other global state: the same data give the same
bytes. Colours are those of Okabe & Ito (2008), which colour-blind readers tell apart, with further
ones for the later rivals; where methods are told apart by colour, each has a marker of its own and
its name beside. InfluenceSpace is always the same blue, the full data dark grey, rivals muted.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

FULL, INFLUENCESPACE, ENCODER = "full", "influencespace", "encoder"
METHOD_LABELS = {
    INFLUENCESPACE: "InfluenceSpace",
    FULL: "Full data",
    "random": "Random",
    "clip_score_filtering": "CLIP score",
    "diversity_sampling": "Diversity",
    "coreset_selection": "Coreset (k-centre)",
    "individual_influence": "Per-pair influence (DataInf)",
    "semdedup": "SemDeDup",
    "density_pruning": "Density-based pruning",
    "neg_clip_loss": "negCLIPLoss",
    "neg_clip_loss_normsim": "negCLIPLoss + NormSim",
    "text_alpha_sampling": "Text sampling (α = 0.5)",
    "gradient_similarity": "Gradient similarity",
    ENCODER: "Encoder's own joint space",
}
COMPARISON_LABELS = {
    "same_epochs": "Same number of epochs",
    "same_steps": "Same number of steps",
}
SPLIT_LABELS = {"train": "Training", "validation": "Validation", "test": "Test"}
CATEGORIES = ("harmful", "neutral", "beneficial")
CHECK_LABELS = {  # of the influence estimate, against retraining
    "loco": "One cluster left out",
    "small_weight": "One cluster at 0.9 of its weight",
    "lds": "A random half of the clusters left out",
}

INK, GREY, MUTED, PALE = "#222222", "#666666", "#B9C3CC", "#E6E9EC"
LINE_COLORS = {
    INFLUENCESPACE: "#0072B2",
    FULL: "#4D4D4D",
    "random": "#999999",
    "clip_score_filtering": "#E69F00",
    "diversity_sampling": "#009E73",
    "coreset_selection": "#CC79A7",
    "individual_influence": "#56B4E9",
    "semdedup": "#661100",
    "density_pruning": "#DDCC77",
    "neg_clip_loss": "#8C510A",
    "neg_clip_loss_normsim": "#999933",
    "text_alpha_sampling": "#000000",
    "gradient_similarity": "#332288",
}
METHOD_MARKERS = {
    INFLUENCESPACE: "o",
    FULL: "s",
    "random": "X",
    "clip_score_filtering": "D",
    "diversity_sampling": "^",
    "coreset_selection": "v",
    "individual_influence": "P",
    "semdedup": "<",
    "density_pruning": ">",
    "neg_clip_loss": "p",
    "neg_clip_loss_normsim": "h",
    "text_alpha_sampling": "*",
    "gradient_similarity": "d",
}
CATEGORY_COLORS = {"harmful": "#D55E00", "neutral": "#999999", "beneficial": "#009E73"}

ERROR_STYLE: dict[str, Any] = {
    "fmt": "none",
    "ecolor": INK,
    "elinewidth": 1.0,
    "capsize": 2.5,
}
BESIDE: dict[str, Any] = {  # a value to the right of what it belongs to
    "xytext": (6, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 8.5,
    "color": INK,
}
ON_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}

DPI = 150
MAX_LABELLED = 30  # more clusters than this are drawn without labels, their extremes beside
N_EXTREMES = 10
N_VALUE_BINS = 40
LABEL_WIDTH = 44  # characters
MARKERS_A_LINE = 5  # of a loss curve
COMMON_RANGE = 3.0  # both axes take their common range if this many times the smaller holds it
INFLUENCE_UNIT = "change of the validation loss without the cluster (%)"


# --- Text -------------------------------------------------------------------------------------


def method_label(method: str) -> str:
    """The method's name for people."""
    return METHOD_LABELS.get(method, method.replace("_", " ").capitalize())


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` characters, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def plain(text: str, width: int = 1000) -> str:
    """One line of at most `width` characters that matplotlib draws as it stands.

    Dollar signs open no mathematics, and a character that the font lacks is drawn as a box.
    """
    font = _font()
    line = "".join(c if font.get_char_index(ord(c)) else "□" for c in shorten(text, width))
    return line.replace("$", r"\$")


@functools.cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties()))


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def cluster_label(cluster: int, terms: Sequence[str]) -> str:
    """A cluster's number and what it is about."""
    return plain(f"{cluster}: {', '.join(terms)}" if terms else f"cluster {cluster}", LABEL_WIDTH)


def mean_and_spread(cell: Mapping[str, Any], digits: int = 1) -> str:
    """A mean with its standard deviation, or alone where one value has no spread."""
    mean = f"{cell['mean']:,.{digits}f}"
    return mean if cell["std"] is None else f"{mean} ± {cell['std']:,.{digits}f}"


def seconds_text(seconds: float, digits: int | None = None) -> str:
    """Seconds with a decimal, below one second with two; what rounds to nothing as `<0.1`."""
    digits = (1 if seconds >= 1 else 2) if digits is None else digits
    if 0 < seconds < 0.5 * 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    return f"{seconds:,.{digits}f}" if seconds else "0"


def seconds_and_spread(cell: Mapping[str, Any]) -> str:
    """Mean seconds with their standard deviation, or alone where one run has no spread."""
    mean = seconds_text(cell["mean"])
    if cell["std"] is None:
        return mean
    return f"{mean} ± {seconds_text(cell['std'], 1 if cell['mean'] >= 1 else 2)}"


def signed(value: float) -> str:
    """A number with its sign, with a decimal where it is small."""
    return f"{value:+,.{0 if abs(value) >= 10 else 1}f}"


# --- Shared style -----------------------------------------------------------------------------


def _new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    wrapped = textwrap.fill(title, int(width * 10))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    if note:
        wrapped = textwrap.fill(note, int(width * 15))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def _style(axes: Axes, title: str = "", *, x: str = "", y: str = "", grid: str = "x") -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=8.5, color=MUTED, labelcolor=INK)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _say(axes: Axes, text: str) -> None:
    """An empty panel that says why."""
    axes.set_axis_off()
    axes.text(0, 0.9, text, transform=axes.transAxes, va="top", fontsize=9, color=GREY, wrap=True)


def _bar_color(method: str) -> str:
    own = {INFLUENCESPACE, FULL}
    return LINE_COLORS[method] if method in own else "white" if method == ENCODER else MUTED


def _line_color(method: str) -> str:
    return LINE_COLORS.get(method, GREY)


def _method_marker(method: str) -> str:
    return METHOD_MARKERS.get(method, "o")


def method_rows(methods: Sequence[str]) -> dict[str, float]:
    """Heights of the methods' rows from the top; full data and the encoder stand apart."""
    same_size = [m for m in methods if m not in (FULL, ENCODER)]
    references = [m for m in (FULL, ENCODER) if m in methods]
    gap = 0.4 if same_size else 0.0
    rows = {m: float(i) for i, m in enumerate(same_size)}
    return rows | {m: len(same_size) + gap + i for i, m in enumerate(references)}


def _name_rows(axes: Axes, rows: Mapping[str, float]) -> None:
    axes.set_yticks(list(rows.values()), [plain(method_label(m), LABEL_WIDTH) for m in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(max(rows.values()) + 0.6, min(rows.values()) - 0.6)
    for label, method in zip(axes.get_yticklabels(), rows, strict=False):  # no labels if shared
        label.set_fontweight("bold" if method == INFLUENCESPACE else "normal")


def _method_bars(
    axes: Axes,
    rows: Mapping[str, float],
    cells: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, str],
) -> None:
    """A horizontal bar from zero for each method, its spread where there is one, its value."""
    means = {m: float(cells[m]["mean"] or 0.0) for m in rows}
    spreads = {m: float(cells[m]["std"] or 0.0) for m in rows}
    reach = max(means[m] + spreads[m] for m in rows) or 1.0
    for method, row in rows.items():
        edge = GREY if method == ENCODER else _bar_color(method)
        axes.barh(row, means[method], 0.72, color=_bar_color(method), edgecolor=edge, linewidth=0.8)
        if spreads[method]:
            axes.errorbar(means[method], row, xerr=spreads[method], **ERROR_STYLE)
        weight = "bold" if method == INFLUENCESPACE else "normal"
        end = means[method] + spreads[method]
        axes.annotate(texts[method], (end, row), **BESIDE, fontweight=weight)
    axes.set_xlim(0, 1.32 * reach)


def spread_out(
    positions: Float[np.ndarray, " n"], gap: float, low: float, high: float
) -> Float[np.ndarray, " n"]:
    """Positions at least `gap` apart within bounds, in the same order, as near as can be.

    The least-squares solution: isotonic regression of the sorted positions less i * gap, clipped.
    """
    order = np.argsort(positions, kind="stable")
    offsets = gap * np.arange(len(positions))
    apart = np.empty(len(positions))
    nearest = isotonic_regression(positions[order] - offsets).x
    apart[order] = np.clip(nearest, low, high - offsets[-1]) + offsets
    return apart


def _label_right(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names the methods at the right edge, with a thin line from each one's point."""
    low, high = axes.get_ylim()
    gap = (high - low) * min(0.065, 1 / len(points))
    heights = spread_out(np.array([y for _, y in points.values()]), gap, low, high)
    for (method, point), height in zip(points.items(), heights, strict=True):
        axes.annotate(
            plain(method_label(method), LABEL_WIDTH),
            point,
            xytext=(1.04, float(height)),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=INK,
            fontweight="bold" if method == INFLUENCESPACE else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": _line_color(method),
                "linewidth": 0.7,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


# --- Wrong captions ---------------------------------------------------------------------------


def wrong_captions(
    log_odds: Mapping[str, np.ndarray],
    trusted: Mapping[str, np.ndarray],
    faults: Mapping[str, Any],
) -> Figure:
    """How likely the pairs of each split are right, and which of them are trusted.

    Args:
        log_odds: by split, that image and caption belong together.
        trusted: by held-out split, which pairs are asked or counted on.
        faults: by split the estimated `share` of wrong captions with its `low` and `high`, None
            where too few pairs tell; also whether validation pairs are `taken_at_word`.
    """
    note = (
        "Log odds that image and caption belong together, by how well they agree, if right and "
        "wrong pairs were equally frequent: left of zero a wrong one is likelier. Wrong captions: "
        "estimated share with its 95 % interval. "
    ) + (
        "All validation pairs are taken at their word."
        if faults.get("taken_at_word")
        else "A trusted validation pair is asked what helps."
    )
    told = [
        f"{int(rows.sum()):,} of {count(len(rows), f'{split} pair')}"
        for split, rows in trusted.items()
    ]
    title = " and ".join(told) + " are trusted" if told else "Which captions are likely wrong"
    figure = _new_figure(12.0, 3.6, title, note)
    panels = figure.subplots(1, len(log_odds), sharex=True, squeeze=False)[0]
    edges = np.histogram_bin_edges(np.concatenate(list(log_odds.values())), N_VALUE_BINS)
    for axes, (split, values) in zip(panels, log_odds.items(), strict=True):
        _trust_histogram(axes, values, trusted.get(split), edges)
        heading = f"{SPLIT_LABELS.get(split, split)}: {count(len(values), 'pair')}"
        _style(axes, f"{heading}\n{_wrong_share(faults[split])}", x="log odds", y="pairs", grid="y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_formatter("{x:,g}")
    return figure


def _wrong_share(part: Mapping[str, Any]) -> str:
    if part["share"] is None:
        return "wrong captions: too few pairs to tell"
    low, share, high = (f"{100 * part[k]:.1f}" for k in ("low", "share", "high"))
    return f"wrong captions: {share} % ({low} to {high})"


def _trust_histogram(
    axes: Axes,
    values: Float[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"] | None,
    edges: Float[np.ndarray, " e"],
) -> None:
    """Trusted pairs and the others, one upon the other; all alike where none was to be trusted."""
    if trusted is None:
        axes.hist(values, edges.tolist(), color=MUTED)
    else:
        groups = {
            f"trusted ({int(trusted.sum()):,})": (values[trusted], LINE_COLORS[INFLUENCESPACE]),
            f"not trusted ({int((~trusted).sum()):,})": (values[~trusted], MUTED),
        }
        axes.hist(
            [group for group, _ in groups.values()],
            edges.tolist(),
            stacked=True,
            color=[color for _, color in groups.values()],
            label=list(groups),
        )
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="upper left", handlelength=1.2)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.axvline(0, color=INK, linewidth=1, linestyle="--")


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
    figure = _new_figure(width, _cluster_height(n), title, note)
    overview, labelled = _cluster_axes(figure, n)
    shown = order[extremes(n)]
    title = f"The {N_EXTREMES} largest and the {N_EXTREMES} smallest" if n > len(shown) else ""
    _style(labelled, title, x="pairs")
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
        _style(overview, "All clusters", x="clusters, largest first", y="pairs", grid="y")
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
    figure = _new_figure(width, _cluster_height(n) + 0.3, title, note.format(*thresholds))
    overview, labelled = _cluster_axes(figure, n)
    if overview is not None:
        ranks, x = np.arange(1, n + 1), "clusters, most beneficial first"
        _style(overview, "All clusters", x=x, y=INFLUENCE_UNIT, grid="y")
        lows, highs = percent - errors, percent + errors
        overview.vlines(ranks, lows[order], highs[order], color=MUTED, linewidth=0.8)
        overview.scatter(ranks, percent[order], s=max(4, 900 / n), c=colors[order], zorder=2)
        _zero_and_thresholds(overview, thresholds, "y")
    shown = order[extremes(n)]
    title = f"The {N_EXTREMES} highest and the {N_EXTREMES} lowest" if n > len(shown) else ""
    _style(labelled, title, x=INFLUENCE_UNIT)
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
    figure = _new_figure(11.0, 6.4, title, note)
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
        _style(axes, heading, x=labels[check][0], y=labels[check][1], grid="both")
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
    figure = _new_figure(11.0, 3.9, title, note)
    bars, dots = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _style(bars, "Pairs by category", x="pairs")
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
    _style(dots, "Clusters", x=INFLUENCE_UNIT, y="pairs kept (%)")
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
    figure = _new_figure(12.0, max(4.2, 2.0 + 0.3 * len(kinds)), title, note)
    ratios = [1.3, 1, 0.8] if with_influence else [1.3, 1]
    histogram, shares, *rest = figure.subplots(1, len(ratios), width_ratios=ratios)
    _value_histogram(histogram, values, kept, faulty)
    _kept_of_kinds(shares, kinds)
    for axes in rest:
        _influence_of_kinds(axes, [float(kind["influence"]) for kind in kinds])
    return figure


def _kept_of_kinds(axes: Axes, kinds: Sequence[Mapping[str, Any]]) -> None:
    _style(axes, "Kept, by image-text agreement", x="pairs kept (%)")
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
    _style(axes, "Mean influence of a pair", x="% of the validation loss / n")
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
    _style(axes, "Values of the pairs", x="value (standard deviations)", y="pairs", grid="y")
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
    figure = _new_figure(11.0, 3.9, title, note)
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
    _style(histogram, heading, x="weight of a pair", y="pairs", grid="y")
    _style(dots, "Clusters", x=INFLUENCE_UNIT, y="weight of its pairs")
    heights = np.array([cluster_weights[str(c["cluster"])] for c in categorization])
    _category_dots(dots, categorization, heights, 28.0)
    dots.axhline(1, color=INK, linewidth=1, linestyle="--")
    top = max(1.0, float(heights.max()))
    dots.set_ylim(-0.06 * top, 1.1 * top)
    return figure


# --- Methods ----------------------------------------------------------------------------------

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _spread_note(cells: Iterable[Mapping[str, Any]]) -> str:
    """What error bars mean, if there are any."""
    if all(cell["std"] is None for cell in cells):
        return "One training seed, so the spread is not known."
    return "Error bars and ±: standard deviation over training seeds."


def _metric_note(metrics: Metrics, metric: str) -> str:
    return _spread_note(m[metric] for methods in metrics.values() for m in methods.values())


def rank_methods(metrics: Metrics, metric: str) -> list[str]:
    """Methods by falling mean of the metric over the comparisons, the full data last."""
    methods = next(iter(metrics.values()))
    means = {m: np.mean([cells[m][metric]["mean"] for cells in metrics.values()]) for m in methods}
    return sorted(methods, key=lambda m: (m == FULL, -means[m]))


def recall_comparison(
    metrics: Metrics, metric: str, *, title: str, encoder_recall: float | None = None
) -> Figure:
    """One metric of every method, both comparisons side by side.

    Args:
        metrics: comparison -> method -> metric -> `mean` and `std`.
        metric: which one.
        title: of the figure.
        encoder_recall: the same metric of the encoder as it is.
    """
    height = 1.7 + 0.32 * len(next(iter(metrics.values())))
    figure = _new_figure(11.0, height, title, _metric_note(metrics, metric))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    _recall_panels(panels, metrics, metric, encoder_recall)
    return figure


def _recall_panels(
    panels: np.ndarray, metrics: Metrics, metric: str, encoder_recall: float | None
) -> None:
    encoder = {} if encoder_recall is None else {ENCODER: {"mean": encoder_recall, "std": None}}
    rows = method_rows([*rank_methods(metrics, metric), *encoder])
    for axes, (comparison, methods) in zip(panels, metrics.items(), strict=True):
        _style(axes, COMPARISON_LABELS[comparison], x="recall (% of queries)")
        cells = {m: methods[m][metric] for m in methods} | encoder
        _method_bars(axes, rows, cells, {m: mean_and_spread(cells[m]) for m in rows})
        _name_rows(axes, rows)
    reach = max(axes.get_xlim()[1] for axes in panels)
    for axes in panels:
        axes.set_xlim(0, reach)
        axes.set_xticks([t for t in axes.get_xticks() if t <= min(reach, 100)])


def performance_comparison(
    metrics: Metrics,
    encoder_recall: float | None,
    differences: Mapping[str, Mapping[str, tuple[float, float | None]]],
) -> Figure:
    """Mean recall of every method and, below, how far each is from random selection.

    Args:
        metrics: comparison -> method -> metric -> `mean` and `std`.
        encoder_recall: mean recall of the encoder as it is.
        differences: comparison -> method -> difference to random in points, and its standard
            error (None with one seed); empty without random selection.
    """
    n_methods = len(next(iter(metrics.values())))
    n_rows = 2 if any(differences.values()) else 1
    title = "Mean recall on unseen images: both directions, at 1, 5 and 10"
    note = _metric_note(metrics, "mean_recall")
    if any(error is not None for cells in differences.values() for _, error in cells.values()):
        note += " Bars of differences: the standard error of the two means combined."
    figure = _new_figure(11.0, 0.9 + n_rows * (1.0 + 0.34 * n_methods), title, note)
    grid = figure.subplots(n_rows, len(metrics), sharey="row", squeeze=False)
    _recall_panels(grid[0], metrics, "mean_recall", encoder_recall)
    if n_rows == 2:
        order = [m for m in rank_methods(metrics, "mean_recall") if m != "random"]
        _difference_panels(grid[1], method_rows(order), differences)
    return figure


def _difference_panels(
    panels: np.ndarray,
    rows: Mapping[str, float],
    differences: Mapping[str, Mapping[str, tuple[float, float | None]]],
) -> None:
    ends = [abs(d) + (e or 0) for cells in differences.values() for d, e in cells.values()]
    reach = 1.15 * max(ends) or 1.0
    for axes, (comparison, cells) in zip(panels, differences.items(), strict=True):
        title = f"Against random: {COMPARISON_LABELS[comparison].lower()}"
        _style(axes, title, x="difference of mean recall (points)")
        axes.axvline(0, color=INK, linewidth=1)
        for method, row in rows.items():
            difference, error = cells[method]
            if error is not None:
                axes.errorbar(difference, row, xerr=error, **ERROR_STYLE)
            axes.scatter(difference, row, s=40, color=_bar_color(method), edgecolor=INK, zorder=3)
            text = f"{difference:+.1f}".replace("-", "−")
            axes.annotate(text, (max(difference + (error or 0), 0), row), **BESIDE)
        _name_rows(axes, rows)
        axes.set_xlim(-reach, 1.3 * reach)


def efficiency_comparison(efficiency: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Pairs trained on, seconds to choose them and seconds to train, by method."""
    rows = method_rows(sorted(efficiency, key=lambda m: efficiency[m]["curation_seconds"]))
    note = _spread_note(
        e[c]["training_seconds"] for e in efficiency.values() for c in COMPARISON_LABELS
    )
    note += " Embedding all pairs, which every method needs, is not included."
    figure = _new_figure(12.0, 1.7 + 0.32 * len(rows), "What each method costs", note)
    costs = {
        ("Pairs trained on", "pairs"): {m: e["n_pairs"] for m, e in efficiency.items()},
        ("Choosing them", "seconds"): {m: e["curation_seconds"] for m, e in efficiency.items()},
    }
    columns = {
        key: {m: {"mean": float(value), "std": None} for m, value in values.items()}
        for key, values in costs.items()
    } | {
        (f"Training, {label.lower().replace('number of ', '')}", "seconds a run"): {
            m: e[comparison]["training_seconds"] for m, e in efficiency.items()
        }
        for comparison, label in COMPARISON_LABELS.items()
    }
    panels = figure.subplots(1, len(columns), sharey=True)
    for axes, ((title, unit), cells) in zip(panels, columns.items(), strict=True):
        _style(axes, title, x=unit)
        labels = {
            m: mean_and_spread(cells[m], 0) if unit == "pairs" else seconds_and_spread(cells[m])
            for m in rows
        }
        _method_bars(axes, rows, cells, labels)
        _name_rows(axes, rows)
        axes.set_xlim(right=1.25 * axes.get_xlim()[1])
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,g}")
    return figure


def training_progress(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training and validation loss of every method as training goes on, mean over seeds.

    Args:
        histories: method -> one run a seed, each with `step`, `train_loss`, `validation_loss`.
    """
    title = "Loss during training for the same number of epochs"
    note = (
        "Lines: mean over training seeds; bands: their standard deviation. A training loss is the "
        "mean over the steps since the last one and drawn in their middle. Training losses are "
        "each over the method's own pairs and weights, so only validation losses compare."
    )
    figure = _new_figure(12.0, 4.6, title, note)
    panels = figure.subplots(1, 2)
    names = {"train_loss": "Training loss", "validation_loss": "Validation loss"}
    for axes, (key, title) in zip(panels, names.items(), strict=True):
        _style(axes, title, x="training steps", y="loss (nats)", grid="y")
        ends = {}
        for method, runs in histories.items():
            steps = np.asarray(runs[0]["step"])
            if key == "train_loss":
                steps = (np.concatenate([[0], steps[:-1]]) + 1 + steps) / 2
            losses = np.array([run[key] for run in runs], dtype=float)
            _loss_line(axes, method, steps, losses)
            ends[method] = (float(steps[-1]), float(losses[:, -1].mean()))
        axes.set_xlim(left=0)
        _label_right(axes, ends)
    return figure


def _loss_line(
    axes: Axes,
    method: str,
    steps: Int[np.ndarray, " t"] | Float[np.ndarray, " t"],
    losses: Float[np.ndarray, "s t"],
) -> None:
    mean, color = losses.mean(axis=0), _line_color(method)
    strong = method in (INFLUENCESPACE, FULL)
    width, order = (2.2, 3) if strong else (1.3, 2)
    # A few markers a line, no two methods' at the same steps.
    spacing = max(1, len(steps) // MARKERS_A_LINE)
    shift = list(METHOD_MARKERS).index(method) % spacing if method in METHOD_MARKERS else 0
    axes.plot(
        steps,
        mean,
        color=color,
        linewidth=width,
        marker=_method_marker(method),
        markersize=4.5,
        markevery=(shift, spacing),
        zorder=order,
    )
    if len(losses) > 1:
        std = losses.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def performance_efficiency_tradeoff(
    metrics: Metrics, efficiency: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Mean recall against the seconds that choosing and training take together."""
    title = "Recall against time: up and to the left is better"
    note = _metric_note(metrics, "mean_recall")
    note += " Time: choosing the pairs plus one training run, without embedding."
    figure = _new_figure(12.0, 4.4, title, note)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for axes, (comparison, methods) in zip(panels, metrics.items(), strict=True):
        _style(axes, COMPARISON_LABELS[comparison], x="seconds to choose and to train", grid="both")
        points[comparison] = {}
        for method, cells in methods.items():
            cost, recall = efficiency[method][comparison]["training_seconds"], cells["mean_recall"]
            point = (efficiency[method]["curation_seconds"] + cost["mean"], recall["mean"])
            style = ERROR_STYLE | {"ecolor": _line_color(method), "capsize": 0}
            axes.errorbar(*point, xerr=cost["std"] or 0, yerr=recall["std"] or 0, **style)
            marker, color = _method_marker(method), _line_color(method)
            axes.scatter(
                *point, 70, color, marker=marker, edgecolor="white", linewidth=0.5, zorder=3
            )
            points[comparison][method] = point
        axes.set_xlim(0, 1.04 * axes.dataLim.xmax or 1.0)
    panels[0].set_ylabel("mean recall (% of queries)", fontsize=9, color=INK)
    for axes, named in zip(panels, points.values(), strict=True):  # the shared limits are settled
        _label_right(axes, named)
    return figure


# --- Demographic gaps -------------------------------------------------------------------------

MARKERS = (("o", "●"), ("D", "◇"), ("s", "■"), ("^", "▲"), ("v", "▼"))  # of groups
Gaps = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _gap_panels(gaps: Gaps, title: str, note: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure with a row of panels an attribute and a column a comparison."""
    methods = next(iter(gaps.values()))
    attributes = list(next(iter(methods.values())))
    height = 0.9 + len(attributes) * (1.1 + 0.28 * len(methods))
    figure = _new_figure(11.0, height, title, note)
    grid = figure.subplots(len(attributes), len(gaps), sharex=True, sharey="row", squeeze=False)
    return figure, {
        (attribute, comparison): grid[i, j]
        for i, attribute in enumerate(attributes)
        for j, comparison in enumerate(gaps)
    }


def _group_title(attribute: str, comparison: str, groups: Mapping[str, Any], marks: str) -> str:
    """The attribute, its groups with their sizes and markers, and the comparison."""
    named = [
        f"{mark} {group} ({state['n_queries']:,}{', too few' if state['too_small'] else ''})"
        for (group, state), mark in zip(groups.items(), marks.ljust(len(groups)), strict=False)
    ]
    return f"{attribute}: {', '.join(n.strip() for n in named)}\n{COMPARISON_LABELS[comparison]}"


def fairness_comparison(gaps: Gaps, recall_at: int) -> Figure:
    """Gap between the best and the worst group for every method, with its 95 % interval."""
    title = f"Gap in text-to-image recall@{recall_at} between groups of captions"
    note = (
        "In brackets: test captions of the group. Dots and numbers: the gap; lines: its 95 % "
        "interval from a bootstrap over test images. A gap is never negative, so an interval near "
        "zero is compatible with no gap."
    )
    figure, panels = _gap_panels(gaps, title, note)
    for (attribute, comparison), axes in panels.items():
        cells = {m: attributes[attribute] for m, attributes in gaps[comparison].items()}
        groups = next(iter(cells.values()))["groups"]
        heading = _group_title(attribute, comparison, groups, "")
        if any(cell["gap"] is None for cell in cells.values()):
            _say(axes, f"{heading}\nNot enough captions to compare two groups.")
            continue
        _style(axes, heading, x="percentage points")
        rows = method_rows(list(cells))
        for method, row in rows.items():
            gap = cells[method]["gap"][f"recall@{recall_at}"]
            low, high = gap["interval_95"]
            axes.plot([low, high], [row, row], color=_bar_color(method), linewidth=3, zorder=2)
            axes.scatter(gap["gap"], row, s=36, color=_bar_color(method), edgecolor=INK, zorder=3)
            axes.annotate(f"{gap['gap']:.1f}", (max(high, gap["gap"]), row), **BESIDE)
        _name_rows(axes, rows)
        axes.tick_params(labelbottom=True)
    for axes in panels.values():  # shared: room for the values
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
    return figure


def demographic_gaps(gaps: Gaps, recall_at: int) -> Figure:
    """Recall of every group for every method; the line between two groups is the gap."""
    title = f"Text-to-image recall@{recall_at} by whom the caption speaks of"
    note = "In brackets: test captions of the group. The line between two groups is the gap."
    figure, panels = _gap_panels(gaps, title, note)
    key = f"text_to_image_recall@{recall_at}"
    for (attribute, comparison), axes in panels.items():
        cells = {m: attributes[attribute] for m, attributes in gaps[comparison].items()}
        groups = next(iter(cells.values()))["groups"]
        heading = _group_title(attribute, comparison, groups, "".join(m for _, m in MARKERS))
        if all(state["too_small"] for state in groups.values()):
            _say(axes, f"{heading}\nNot enough captions to score any group.")
            continue
        _style(axes, heading, x="recall (% of captions)")
        rows = method_rows(list(cells))
        for method, row in rows.items():
            recalls = [state.get(key) for state in cells[method]["groups"].values()]
            scored = [r for r in recalls if r is not None]
            color = _line_color(method)
            axes.plot([min(scored), max(scored)], [row, row], color=color, linewidth=2, zorder=2)
            for recall, (marker, sign) in zip(recalls, MARKERS, strict=False):
                if recall is not None:
                    fill = "white" if sign == "◇" else color
                    axes.scatter(recall, row, 42, fill, marker=marker, edgecolor=color, zorder=3)
        _name_rows(axes, rows)
        axes.tick_params(labelbottom=True)
    return figure


# --- Photographs ------------------------------------------------------------------------------


def contact_sheet(
    images: Sequence[np.ndarray], titles: Sequence[str], *, heading: str, n_columns: int
) -> Figure:
    """Photographs in rows of `n_columns`, each with its caption wrapped below.

    Args:
        images: (h, w, 3) or (h, w), uint8; any sizes.
        titles: one caption an image; each of its lines is wrapped.
        heading: above them all.
        n_columns: photographs in a row, at least one.
    """
    n_rows = max(1, -(-len(images) // n_columns))
    width = 2.4 * n_columns
    figure = _new_figure(width, 0.5 + 3.0 * n_rows, plain(heading, 400))
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("S")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
        lines = [w for line in title.splitlines() for w in textwrap.wrap(plain(line, 150), 34)]
        axes.set_title("\n".join(lines), y=0, va="top", pad=-4, fontsize=8, color=INK)
    return figure
