"""The figure of the benchmark of regimes: who wins where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from regimes_names import ORACLE, RANDOM, ROOT, SAME_STEPS, regime_label

from baselines import BASELINES, FULL, INFLUENCESPACE
from reporting.figures.style import GREY, INK, LINE_COLORS, PALE
from reporting.words import COMPARISON_LABELS, method_label

FIGURE = ROOT / "docs/regimes.png"
FIGURE_KEEP, FIGURE_COMPARISON = 0.8, SAME_STEPS
REFERENCE_LINES = {
    ORACLE: ("#009E73", "--", "Oracle: knows the faults"),
    FULL: (LINE_COLORS[FULL], "-", "Full data"),
    RANDOM: ("#999999", ":", "Random"),
}


def figure(cells: Sequence[dict[str, Any]], file: Path) -> None:
    """A panel a regime: mean recall of every method, InfluenceSpace in blue."""
    shown = [c for c in cells if (c["keep"], c["comparison"]) == (FIGURE_KEEP, FIGURE_COMPARISON)]
    if not shown:
        return
    names = _by_rank(shown)
    with mpl.rc_context({"font.size": 9}):
        n_columns = min(5 if len(shown) > 11 else 4, len(shown) + 1)
        n_rows = -(-(len(shown) + 1) // n_columns)
        size = 2.6 * n_columns, 0.9 + 2.75 * n_rows
        drawn = Figure(figsize=size, layout="constrained")
        axes = drawn.subplots(n_rows, n_columns, squeeze=False).reshape(-1)
        for i, (axis, cell) in enumerate(zip(axes, shown, strict=False)):
            _panel(axis, cell, names, labelled=i % n_columns == 0)
        for axis in axes[len(shown) :]:
            axis.axis("off")
        _legend(axes[len(shown)])
        drawn.suptitle(
            f"Mean recall on unseen images (%) after training on {100 * FIGURE_KEEP:g} % of the "
            f"pairs, {COMPARISON_LABELS[FIGURE_COMPARISON].lower()}; methods by mean rank",
            fontsize=10.5,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(file, dpi=150)


def _by_rank(cells: Sequence[dict[str, Any]]) -> list[str]:
    """InfluenceSpace and the rivals, by their mean rank over the regimes."""
    names = [m for m in (INFLUENCESPACE, *BASELINES) if all(m in c["methods"] for c in cells)]
    recalls = [[c["methods"][m]["mean_recall"]["mean"] for m in names] for c in cells]
    ranks = pd.DataFrame(recalls, columns=names).rank(axis=1, ascending=False).mean()
    return ranks.sort_values().index.tolist()


def _panel(axis: Axes, cell: dict[str, Any], names: Sequence[str], *, labelled: bool) -> None:
    methods = cell["methods"]
    for name, (color, style, _) in REFERENCE_LINES.items():
        if name in methods:
            at = methods[name]["mean_recall"]["mean"]
            axis.axvline(at, color=color, linestyle=style, linewidth=1.2, zorder=1)
    for y, name in enumerate(names):
        recall = methods[name]["mean_recall"]
        color, size = GREY, 4.5
        if name == cell["best_rival"]:
            color, size = LINE_COLORS["clip_score_filtering"], 6.0
        if name == INFLUENCESPACE:
            color, size = LINE_COLORS[INFLUENCESPACE], 7.0
        axis.errorbar(
            recall["mean"], y, xerr=recall["stderr"], fmt="o", color=color, markersize=size,
            elinewidth=1.4, zorder=3,
        )  # fmt: skip
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), [method_label(n) for n in names] if labelled else [])
    for label, name in zip(axis.get_yticklabels(), names, strict=False):
        if name == INFLUENCESPACE:
            label.set(color=LINE_COLORS[INFLUENCESPACE], fontweight="bold")
    axis.set_title(regime_label(cell["regime"]), fontsize=9, color=INK)
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=5)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _legend(axis: Axes) -> None:
    for name, size, label in (
        (INFLUENCESPACE, 7.0, "InfluenceSpace"),
        ("clip_score_filtering", 6.0, "best rival of the panel"),
    ):
        axis.plot([], [], "o", color=LINE_COLORS[name], markersize=size, label=label)
    axis.plot([], [], "o", color=GREY, markersize=4.5, label="other rivals")
    for color, style, label in REFERENCE_LINES.values():
        axis.plot([], [], color=color, linestyle=style, linewidth=1.2, label=label)
    legend = axis.legend(loc="center left", frameon=False, title="± standard error over seeds")
    legend.set_in_layout(False)  # it may be wider than a panel
