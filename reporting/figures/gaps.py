"""Figures of the demographic gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.figures.style import (
    BESIDE,
    INK,
    bar_color,
    line_color,
    method_rows,
    name_rows,
    new_figure,
    say,
    style_axes,
)
from reporting.words import COMPARISON_LABELS

GAP_FIGURES = ("results/demographic_gaps.png", "evaluation/fairness_comparison.png")

# --- Demographic gaps -------------------------------------------------------------------------

MARKERS = (("o", "●"), ("D", "◇"), ("s", "■"), ("^", "▲"), ("v", "▼"))  # of groups
Gaps = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _gap_panels(gaps: Gaps, title: str, note: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure with a row of panels an attribute and a column a comparison."""
    methods = next(iter(gaps.values()))
    attributes = list(next(iter(methods.values())))
    height = 0.9 + len(attributes) * (1.1 + 0.28 * len(methods))
    figure = new_figure(11.0, height, title, note)
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
            say(axes, f"{heading}\nNot enough captions to compare two groups.")
            continue
        style_axes(axes, heading, x="percentage points")
        rows = method_rows(list(cells))
        for method, row in rows.items():
            gap = cells[method]["gap"][f"recall@{recall_at}"]
            low, high = gap["interval_95"]
            axes.plot([low, high], [row, row], color=bar_color(method), linewidth=3, zorder=2)
            axes.scatter(gap["gap"], row, s=36, color=bar_color(method), edgecolor=INK, zorder=3)
            axes.annotate(f"{gap['gap']:.1f}", (max(high, gap["gap"]), row), **BESIDE)
        name_rows(axes, rows)
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
            say(axes, f"{heading}\nNot enough captions to score any group.")
            continue
        style_axes(axes, heading, x="recall (% of captions)")
        rows = method_rows(list(cells))
        for method, row in rows.items():
            recalls = [state.get(key) for state in cells[method]["groups"].values()]
            scored = [r for r in recalls if r is not None]
            color = line_color(method)
            axes.plot([min(scored), max(scored)], [row, row], color=color, linewidth=2, zorder=2)
            for recall, (marker, sign) in zip(recalls, MARKERS, strict=False):
                if recall is not None:
                    fill = "white" if sign == "◇" else color
                    axes.scatter(recall, row, 42, fill, marker=marker, edgecolor=color, zorder=3)
        name_rows(axes, rows)
        axes.tick_params(labelbottom=True)
    return figure
