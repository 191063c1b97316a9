"""How every figure looks: colours, markers, axes, labels.

Figures are matplotlib's own objects; seaborn draws distributions, dots and lines on axes that are
handed to it. Every figure is made inside a local style (`in_style`), without current axes or other
global state of pyplot: the same data give the same bytes. Colours are those of Okabe & Ito (2008),
which colour-blind readers tell apart, with further ones for the later rivals; where methods are
told apart by colour, each has a marker of its own and its name beside. InfluenceSpace is always the
same blue, the full data dark grey, rivals muted.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from baselines import BASELINES, FULL, INFLUENCESPACE, METHODS
from reporting.fonts import give_fonts
from reporting.words import ENCODER, LABEL_WIDTH, method_label, plain

INK, GREY, MUTED, PALE = "#222222", "#666666", "#B9C3CC", "#E6E9EC"
STYLED = (INFLUENCESPACE, FULL, *BASELINES)
LINE_COLORS = {name: METHODS[name].colour for name in STYLED}
METHOD_MARKERS = {name: METHODS[name].marker for name in STYLED}
CATEGORY_COLORS = {"harmful": "#D55E00", "neutral": "#999999", "beneficial": "#009E73"}
ERROR_STYLE: dict[str, Any] = {
    "fmt": "none",
    "ecolor": INK,
    "elinewidth": 1.0,
    "capsize": 2.5,
}
DPI = 150
STYLE: dict[str, Any] = {  # of every figure; what belongs to ticks is in `style_axes`
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.labelcolor": INK,
}
BESIDE: dict[str, Any] = {  # a value to the right of what it belongs to
    "xytext": (6, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 8.5,
    "color": INK,
}
ON_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
TICK_STEPS = (1, 2, 2.5, 5, 10)
STEEP = 20.0  # times that values are the smallest, above which their axis is logarithmic
P = ParamSpec("P")


def in_style(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """The same maker of a figure inside `STYLE`, whatever matplotlib's settings are outside.

    They are read when axes, texts and legends are made, so the whole figure is made inside; then
    they are as before. Texts with letters that the style's font lacks get another.
    """

    @functools.wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            figure = make(*args, **kwargs)
            give_fonts(figure)
            return figure

    return styled


def new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """An empty figure with its title and, small below it, a note."""
    figure = Figure(figsize=(width, height), layout="constrained")
    wrapped = textwrap.fill(title, int(width * 10))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    if note:
        wrapped = textwrap.fill(note, int(width * 15))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def style_axes(axes: Axes, title: str = "", *, x: str = "", y: str = "", grid: str = "x") -> None:
    """Title, labels, ticks and grid of axes."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    # Ticks are made when the figure is drawn, outside its style.
    axes.tick_params(labelsize=8.5, color=MUTED, labelcolor=INK)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)  # type: ignore[arg-type]


def say(axes: Axes, text: str) -> None:
    """An empty panel that says why."""
    axes.set_axis_off()
    axes.text(0, 0.9, text, transform=axes.transAxes, va="top", fontsize=9, color=GREY, wrap=True)


def bar_color(method: str) -> str:
    """InfluenceSpace and the full data in their own colours, the encoder white, rivals muted."""
    own = {INFLUENCESPACE, FULL}
    return LINE_COLORS[method] if method in own else "white" if method == ENCODER else MUTED


def line_color(method: str) -> str:
    """The method's own colour, grey where it has none."""
    return LINE_COLORS.get(method, GREY)


def method_marker(method: str) -> str:
    """The method's own marker, a dot where it has none."""
    return METHOD_MARKERS.get(method, "o")


def method_rows(methods: Sequence[str]) -> dict[str, float]:
    """Heights of the methods' rows from the top; full data and the encoder stand apart."""
    same_size = [m for m in methods if m not in (FULL, ENCODER)]
    references = [m for m in (FULL, ENCODER) if m in methods]
    gap = 0.4 if same_size else 0.0
    rows = {m: float(i) for i, m in enumerate(same_size)}
    return rows | {m: len(same_size) + gap + i for i, m in enumerate(references)}


def name_rows(axes: Axes, rows: Mapping[str, float]) -> None:
    """Methods' names at the rows of an axis."""
    axes.set_yticks(list(rows.values()), [plain(method_label(m), LABEL_WIDTH) for m in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(max(rows.values()) + 0.6, min(rows.values()) - 0.6)
    for label, method in zip(axes.get_yticklabels(), rows, strict=False):  # no labels if shared
        label.set_fontweight("bold" if method == INFLUENCESPACE else "normal")


def method_bars(
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
        edge = GREY if method == ENCODER else bar_color(method)
        axes.barh(row, means[method], 0.72, color=bar_color(method), edgecolor=edge, linewidth=0.8)
        if spreads[method]:
            axes.errorbar(means[method], row, xerr=spreads[method], **ERROR_STYLE)
        weight = "bold" if method == INFLUENCESPACE else "normal"
        end = means[method] + spreads[method]
        axes.annotate(texts[method], (end, row), **BESIDE, fontweight=weight)
    axes.set_xlim(0, 1.32 * reach)


def interval_rows(
    axes: Axes,
    rows: Mapping[str, float],
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    texts: Mapping[str, str],
) -> None:
    """A dot for each method, its interval behind it where it has one, and a text beside both.

    The text is on the right, or on the left of what is below zero.
    """
    colors = {m: bar_color(m) for m in rows}
    known = [m for m in rows if m in intervals]
    lows, highs = ([intervals[m][end] for m in known] for end in (0, 1))
    heights = [rows[m] for m in known]
    axes.hlines(heights, lows, highs, [colors[m] for m in known], linewidth=3, zorder=2)
    sns.scatterplot(
        x=[values[m] for m in rows],
        y=list(rows.values()),
        hue=list(rows),
        palette=colors,
        s=40,
        edgecolor=INK,
        linewidth=1,
        legend=False,
        zorder=3,
        ax=axes,
    )
    for method, row in rows.items():
        ends = (values[method], *intervals.get(method, ()))
        is_left = max(ends) < 0  # no text crosses the zero line
        side = {"xytext": (-6, 0), "ha": "right"} if is_left else {}
        weight = "bold" if method == INFLUENCESPACE else "normal"
        place = (min(ends) if is_left else max(ends), row)
        axes.annotate(texts[method], place, **BESIDE | side, fontweight=weight)


def round_ticks(axis: XAxis | YAxis, n_ticks: int, *, whole: bool = False) -> None:
    """Ticks at round numbers, at most about so many; whole numbers are written with commas."""
    steps = [step for step in TICK_STEPS if step == int(step) or not whole]
    axis.set_major_locator(MaxNLocator(nbins=n_ticks, steps=steps, integer=whole))
    if whole:
        axis.set_major_formatter("{x:,g}")


def is_steep(values: Float[np.ndarray, " n"]) -> bool:
    """Whether positive values differ so much that only a logarithmic axis shows them all."""
    return bool(values.min() > 0 and values.max() > STEEP * values.min())


def make_logarithmic(axis: XAxis | YAxis, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """A logarithmic axis with plain numbers at `subs` times the powers of ten."""
    set_scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")


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


def label_right(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names the methods at the right edge, with a thin line from each one's point."""
    axes.autoscale_view()  # the limits decide where the points are on the page
    on_axes = axes.transScale + axes.transLimits
    heights = on_axes.transform(np.array(list(points.values())))[:, 1]
    apart = spread_out(heights, min(0.065, 1 / len(points)), 0.0, 1.0)
    for (method, point), height in zip(points.items(), apart, strict=True):
        axes.annotate(
            plain(method_label(method), LABEL_WIDTH),
            point,
            xytext=(1.04, float(height)),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=INK,
            fontweight="bold" if method == INFLUENCESPACE else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": line_color(method),
                "linewidth": 0.7,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
