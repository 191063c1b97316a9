"""The figure of how much to keep: recall and loss against the share of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from attribution.keep_curve import KeepCurve
from baselines import INFLUENCESPACE
from reporting.figures.style import (
    CATEGORY_COLORS,
    GREY,
    INK,
    in_style,
    line_color,
    new_figure,
    round_ticks,
    style_axes,
)
from reporting.words import count

CURVE, BEST, FAULTS = (
    line_color(INFLUENCESPACE),
    CATEGORY_COLORS["beneficial"],
    CATEGORY_COLORS["harmful"],
)
BELOW = 0.08  # of the panel's height that is left free for it
STRIP = 0.035  # height at which the interval of pairs that do not look faulty lies, of the panel


@in_style
def keep_curve(curve: KeepCurve, kept: float) -> Figure:
    """Recall and loss expected at each share, with what was measured and where the run stands.

    Args:
        curve: of stage 3.
        kept: the share that this run keeps.
    """
    best, found = curve.best, curve.best["check"]
    note = (
        f"Short trainings of {count(best['n_steps'], 'step')} with "
        f"{count(best['n_seeds'], 'seed')}, asked by "
        f"{count(best['validation_pairs'], 'trusted validation pair')}. Lines: cubic fit; bands: "
        "its standard error, of the difference to the highest point. Recall is among these pairs "
        "alone, both directions at 1, 5 and 10."
    )
    low, high = 100 * best["low"], 100 * best["high"]
    title = f"Best share to keep: {100 * curve.share:.3g} %; highest at {low:.0f} to {high:.0f}"
    figure = new_figure(11.0, 4.4, title, note)
    panels = figure.subplots(1, 2, sharex=True)
    _curve(panels[0], curve.shares, curve.recall, curve.recall_stderr)
    _points(panels[0], curve.measured_shares, curve.measured_recall)
    at = [100 * found["share"]], [found["random"]]
    panels[0].plot(*at, marker="X", color=GREY, markersize=7, linestyle="none", zorder=4)
    _curve(panels[1], curve.shares, curve.loss, curve.loss_stderr)
    _points(panels[1], curve.measured_shares, curve.measured_loss)
    for axes, (heading, unit) in zip(
        panels, (("Recall", "mean recall (%)"), ("Loss", "loss (nats)")), strict=True
    ):
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - BELOW * (top - bottom), top)  # no dot lies behind the strip
        _places(axes, curve, kept)
        style_axes(axes, heading, x="share of the pairs kept (%)", y=unit, grid="y")
        round_ticks(axes.xaxis, 8)
        round_ticks(axes.yaxis, 6)
    figure.legend(handles=_entries(curve, kept), loc="outside right upper")
    return figure


def _curve(
    axes: Axes,
    shares: Float[np.ndarray, " g"],
    values: Float[np.ndarray, " g"],
    errors: Float[np.ndarray, " g"],
) -> None:
    axes.fill_between(
        100 * shares, values - errors, values + errors, color=CURVE, alpha=0.18, linewidth=0
    )
    sns.lineplot(x=100 * shares, y=values, color=CURVE, linewidth=2, errorbar=None, ax=axes)


def _points(axes: Axes, shares: Float[np.ndarray, " t"], values: Float[np.ndarray, " t"]) -> None:
    sns.scatterplot(
        x=100 * shares,
        y=values,
        color=CURVE,
        s=26,
        edgecolor="white",
        linewidth=0.6,
        legend=False,
        zorder=3,
        ax=axes,
    )


def _places(axes: Axes, curve: KeepCurve, kept: float) -> None:
    """The share kept, the best one with its interval, and that of pairs that look right."""
    best = curve.best
    axes.axvspan(100 * best["low"], 100 * best["high"], color=BEST, alpha=0.12, linewidth=0)
    axes.axvline(100 * kept, color=INK, linewidth=1.2)
    axes.axvline(100 * curve.share, color=BEST, linewidth=2.2, linestyle=(0, (3, 3)))
    if best["fault_share"] is None:
        return
    share, low, high = (100 * (1 - x) for x in best["fault_share"])
    across = axes.get_xaxis_transform()
    axes.plot([high, low], [STRIP, STRIP], color=FAULTS, linewidth=3, transform=across, zorder=3)
    axes.plot([share], [STRIP], color=FAULTS, marker="D", markersize=6, transform=across, zorder=4)


def _entries(curve: KeepCurve, kept: float) -> Sequence[Artist]:
    """What the legend says of each mark."""
    best = curve.best
    dot: dict[str, Any] = {"color": CURVE, "marker": "o", "markeredgecolor": "white"}
    entries: list[Artist] = [
        Line2D([], [], **dot, linewidth=2, label="pairs of highest value"),
        Line2D(
            [],
            [],
            color=GREY,
            marker="X",
            linestyle="none",
            label="as many at random\nthat look right",
        ),
        Line2D([], [], color=INK, linewidth=1.2, label=f"kept: {100 * kept:.3g} %"),
        Line2D(
            [],
            [],
            color=BEST,
            linewidth=2.2,
            linestyle=(0, (2, 1.5)),
            label=f"best: {100 * curve.share:.3g} %",
        ),
        Patch(color=BEST, alpha=0.25, linewidth=0, label="highest (95 % interval)"),
    ]
    if best["fault_share"] is not None:
        share, low, high = (100 * x for x in best["fault_share"])
        text = f"do not look faulty:\nall but {share:.1f} %\n({low:.1f} to {high:.1f})"
        entries.append(Line2D([], [], color=FAULTS, marker="D", linewidth=3, label=text))
    return entries
