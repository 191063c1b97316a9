"""The figure of the influence estimate beside real retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines import INFLUENCESPACE
from reporting.figures.style import (
    CATEGORY_COLORS,
    ERROR_STYLE,
    INK,
    MUTED,
    in_style,
    line_color,
    new_figure,
    round_ticks,
    style_axes,
)
from reporting.verdicts import CLEAR
from reporting.words import CHECK_LABELS, count

COMMON_RANGE = 3.0  # both axes take their common range if this many times the smaller holds it
POINT_COLORS = {"differ": CATEGORY_COLORS["harmful"], "agree": line_color(INFLUENCESPACE)}


@in_style
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
            "estimate and of the mean over retraining seeds; orange: the two differ by more than "
            f"{CLEAR:g} of their standard errors combined. "
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
        scale = 1.0 if check == "loco" else 0.6
        _predicted_and_real(axes, points[check], scale, told_apart=spread)
    return figure


def _predicted_and_real(
    axes: Axes, points: Sequence[Mapping[str, float]], scale: float, *, told_apart: bool
) -> None:
    """Points with error bars, the line on which real equals predicted, and zero where in reach."""
    x, y, x_error, y_error = (
        np.array([p[name] for p in points])
        for name in ("predicted", "real", "predicted_stderr", "real_stderr")
    )
    style = ERROR_STYLE | {"ecolor": MUTED, "elinewidth": 0.9, "capsize": 0}
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, **style)
    differ = told_apart & (np.abs(y - x) > CLEAR * np.hypot(x_error, y_error))
    sns.scatterplot(
        x=x,
        y=y,
        hue=np.where(differ, *POINT_COLORS),
        palette=POINT_COLORS,
        s=scale * min(42.0, max(12.0, 2400 / len(x))),
        edgecolor="white",
        linewidth=0.5,
        zorder=3,
        legend=False,
        ax=axes,
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
    round_ticks(axes.xaxis, 6)
    round_ticks(axes.yaxis, 6)
