"""Figures that compare methods: recall, costs, training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines import FULL, INFLUENCESPACE
from reporting.figures.style import (
    ERROR_STYLE,
    INK,
    in_style,
    interval_rows,
    is_steep,
    label_right,
    line_color,
    make_logarithmic,
    method_bars,
    method_marker,
    method_rows,
    name_rows,
    new_figure,
    round_ticks,
    style_axes,
)
from reporting.summary import RECALL_AT
from reporting.words import COMPARISON_LABELS, ENCODER, mean_and_spread, seconds_and_spread

METHOD_FIGURES = (  # beside those of the gaps
    *(f"evaluation/comparison_avg_recall@{k}.png" for k in RECALL_AT),
    "results/performance_comparison.png",
    "results/efficiency_comparison.png",
    "results/training_progress.png",
    "results/performance_efficiency_tradeoff.png",
)
MARKERS_A_LINE = 5  # of a loss curve

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


@in_style
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
    figure = new_figure(11.0, height, title, _metric_note(metrics, metric))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    _recall_panels(panels, metrics, metric, encoder_recall)
    return figure


def _recall_panels(
    panels: np.ndarray, metrics: Metrics, metric: str, encoder_recall: float | None
) -> None:
    encoder = {} if encoder_recall is None else {ENCODER: {"mean": encoder_recall, "std": None}}
    rows = method_rows([*rank_methods(metrics, metric), *encoder])
    for axes, (comparison, methods) in zip(panels, metrics.items(), strict=True):
        style_axes(axes, COMPARISON_LABELS[comparison], x="recall (% of queries)")
        cells = {m: methods[m][metric] for m in methods} | encoder
        method_bars(axes, rows, cells, {m: mean_and_spread(cells[m]) for m in rows})
        name_rows(axes, rows)
    reach = max(axes.get_xlim()[1] for axes in panels)
    for axes in panels:
        axes.set_xlim(0, reach)
        axes.set_xticks([t for t in axes.get_xticks() if t <= min(reach, 100)])


@in_style
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
        note += " Lines of differences: one standard error of the two means combined."
    figure = new_figure(11.0, 0.9 + n_rows * (1.0 + 0.34 * n_methods), title, note)
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
    intervals = {
        comparison: {m: (d - e, d + e) for m, (d, e) in cells.items() if e is not None}
        for comparison, cells in differences.items()
    }
    reached = [0.0, *(d for cells in differences.values() for d, _ in cells.values())]
    reached += [end for ends in intervals.values() for pair in ends.values() for end in pair]
    low, high = min(reached), max(reached)
    reach = (high - low) or 1.0
    for axes, (comparison, cells) in zip(panels, differences.items(), strict=True):
        title = f"Against random: {COMPARISON_LABELS[comparison].lower()}"
        style_axes(axes, title, x="difference of mean recall (points)")
        axes.axvline(0, color=INK, linewidth=1)
        values = {m: cells[m][0] for m in rows}
        texts = {m: f"{value:+.1f}".replace("-", "−") for m, value in values.items()}
        interval_rows(axes, rows, values, intervals[comparison], texts)
        name_rows(axes, rows)
        axes.set_xlim(low - (0.06 if low == 0 else 0.17) * reach, high + 0.17 * reach)


@in_style
def efficiency_comparison(efficiency: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Pairs trained on, seconds to choose them and seconds to train, by method."""
    rows = method_rows(sorted(efficiency, key=lambda m: efficiency[m]["curation_seconds"]))
    note = _spread_note(
        e[c]["training_seconds"] for e in efficiency.values() for c in COMPARISON_LABELS
    )
    note += " Embedding all pairs, which every method needs, is not included."
    figure = new_figure(12.0, 1.7 + 0.32 * len(rows), "What each method costs", note)
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
        style_axes(axes, title, x=unit)
        labels = {
            m: mean_and_spread(cells[m], 0) if unit == "pairs" else seconds_and_spread(cells[m])
            for m in rows
        }
        method_bars(axes, rows, cells, labels)
        name_rows(axes, rows)
        axes.set_xlim(right=1.25 * axes.get_xlim()[1])
        round_ticks(axes.xaxis, 4)
        axes.xaxis.set_major_formatter("{x:,g}")
    return figure


@in_style
def training_progress(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training and validation loss of every method as training goes on, mean over seeds.

    Args:
        histories: method -> one run a seed, each with `step`, `train_loss`, `validation_loss`.
    """
    title = "Loss during training for the same number of epochs"
    n_seeds = max(map(len, histories.values()))
    note = (
        "Lines: mean over training seeds; bands: their standard deviation. "
        if n_seeds > 1
        else "Lines: the one training seed. "
    ) + (
        "A training loss is the mean over the steps since the last one and drawn in their middle. "
        "Training losses are each over the method's own pairs and weights, so only validation "
        "losses compare."
    )
    figure = new_figure(12.0, 4.6, title, note)
    panels = figure.subplots(1, 2)
    names = {"train_loss": "Training loss", "validation_loss": "Validation loss"}
    for axes, (key, title) in zip(panels, names.items(), strict=True):
        style_axes(axes, title, x="training steps", y="loss (nats)", grid="y")
        ends = {}
        for rank, (method, runs) in enumerate(histories.items()):
            steps = np.asarray(runs[0]["step"])
            if key == "train_loss":
                steps = (np.concatenate([[0], steps[:-1]]) + 1 + steps) / 2
            losses = np.array([run[key] for run in runs], dtype=float)
            _loss_line(axes, method, steps, losses, rank)
            ends[method] = (float(steps[-1]), float(losses[:, -1].mean()))
        axes.set_xlim(left=0)
        if is_steep(np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])):
            make_logarithmic(axes.yaxis)
            axes.set_ylabel("loss (nats, logarithmic)")
        label_right(axes, ends)
    return figure


def _loss_line(
    axes: Axes,
    method: str,
    steps: Int[np.ndarray, " t"] | Float[np.ndarray, " t"],
    losses: Float[np.ndarray, "s t"],
    rank: int,
) -> None:
    """Mean and standard deviation over the s seeds, with a few markers, at steps of their own."""
    strong = method in (INFLUENCESPACE, FULL)
    spacing = max(1, len(steps) // MARKERS_A_LINE)
    sns.lineplot(
        x=np.tile(steps, len(losses)),
        y=losses.ravel(),
        errorbar="sd" if len(losses) > 1 else None,
        err_kws={"alpha": 0.15, "linewidth": 0},
        color=line_color(method),
        linewidth=2.2 if strong else 1.3,
        marker=method_marker(method),
        markersize=5,
        markeredgewidth=0,
        markevery=(rank % spacing, spacing),
        zorder=3 if strong else 2,
        legend=False,
        ax=axes,
    )


@in_style
def performance_efficiency_tradeoff(
    metrics: Metrics, efficiency: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Mean recall against the seconds that choosing and training take together."""
    title = "Recall against time: up and to the left is better"
    note = _metric_note(metrics, "mean_recall")
    note += " Time: choosing the pairs plus one training run, without embedding."
    figure = new_figure(12.0, 4.4, title, note)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    points = {
        comparison: {
            m: (_seconds(efficiency[m], comparison), float(cells["mean_recall"]["mean"]))
            for m, cells in methods.items()
        }
        for comparison, methods in metrics.items()
    }
    steep = is_steep(np.array([x for named in points.values() for x, _ in named.values()]))
    for axes, (comparison, named) in zip(panels, points.items(), strict=True):
        x = "seconds to choose and to train" + (" (logarithmic)" if steep else "")
        style_axes(axes, COMPARISON_LABELS[comparison], x=x, grid="both")
        spreads = {
            m: (
                efficiency[m][comparison]["training_seconds"]["std"] or 0.0,
                metrics[comparison][m]["mean_recall"]["std"] or 0.0,
            )
            for m in named
        }
        _method_dots(axes, named, spreads)
        if steep:
            make_logarithmic(axes.xaxis)
        else:
            axes.set_xlim(0, 1.04 * axes.dataLim.xmax or 1.0)
    panels[0].set_ylabel("mean recall (% of queries)")
    for axes, named in zip(panels, points.values(), strict=True):  # the shared limits are settled
        label_right(axes, named)
    return figure


def _seconds(costs: Mapping[str, Any], comparison: str) -> float:
    """To choose a method's pairs and to train on them once."""
    return float(costs["curation_seconds"] + costs[comparison]["training_seconds"]["mean"])


def _method_dots(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    spreads: Mapping[str, tuple[float, float]],
) -> None:
    """A dot for each method in its own colour and shape, with error bars in both directions."""
    methods = list(points)
    x, y = np.array(list(points.values())).T
    x_error, y_error = np.array([spreads[m] for m in methods]).T
    colors = {m: line_color(m) for m in methods}
    bars = ERROR_STYLE | {"ecolor": list(colors.values()), "capsize": 0}
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, **bars)
    sns.scatterplot(
        x=x,
        y=y,
        hue=methods,
        style=methods,
        palette=colors,
        markers={m: method_marker(m) for m in methods},
        s=70,
        edgecolor="white",
        linewidth=0.5,
        legend=False,
        zorder=3,
        ax=axes,
    )
