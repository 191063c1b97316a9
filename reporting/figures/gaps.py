"""Figures of the demographic gaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.figures.style import (
    in_style,
    interval_rows,
    line_color,
    method_rows,
    name_rows,
    new_figure,
    say,
    style_axes,
)
from reporting.words import COMPARISON_LABELS

GAP_FIGURES = ("results/demographic_gaps.png", "evaluation/fairness_comparison.png")

MARKERS = (("o", "●"), ("D", "◇"), ("s", "■"), ("^", "▲"), ("v", "▼"))  # of groups
Gaps = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _gap_panels(
    gaps: Gaps, title: str, note: str, is_shown: Callable[[Mapping[str, Any]], bool]
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure with a row of panels an attribute and a column a comparison.

    A row is low where an attribute is not shown for any method.
    """
    methods = [attributes for of_methods in gaps.values() for attributes in of_methods.values()]
    n_methods = len(next(iter(gaps.values())))
    heights = {
        attribute: 1.1 + 0.28 * n_methods * all(is_shown(states[attribute]) for states in methods)
        for attribute in methods[0]
    }
    figure = new_figure(11.0, 0.9 + sum(heights.values()), title, note)
    grid = figure.subplots(
        len(heights),
        len(gaps),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=list(heights.values()),
    )
    return figure, {
        (attribute, comparison): grid[i, j]
        for i, attribute in enumerate(heights)
        for j, comparison in enumerate(gaps)
    }


def _has_gap(state: Mapping[str, Any]) -> bool:
    return state["gap"] is not None


def _has_scored_group(state: Mapping[str, Any]) -> bool:
    return not all(group["too_small"] for group in state["groups"].values())


def _group_title(attribute: str, comparison: str, groups: Mapping[str, Any], marks: str) -> str:
    """The attribute, its groups with their sizes and markers, and the comparison."""
    named = [
        f"{mark} {group} ({state['n_queries']:,}{', too few' if state['too_small'] else ''})"
        for (group, state), mark in zip(groups.items(), marks.ljust(len(groups)), strict=False)
    ]
    return f"{attribute}: {', '.join(n.strip() for n in named)}\n{COMPARISON_LABELS[comparison]}"


@in_style
def fairness_comparison(gaps: Gaps, recall_at: int) -> Figure:
    """Gap between the best and the worst group for every method, with its 95 % interval."""
    title = f"Gap in text-to-image recall@{recall_at} between groups of captions"
    note = (
        "Behind a group: its test captions. Dots and numbers: the gap; lines and brackets: its "
        "95 % interval from a bootstrap over test images. A gap is never negative, so an interval "
        "near zero is compatible with no gap."
    )
    figure, panels = _gap_panels(gaps, title, note, _has_gap)
    for (attribute, comparison), axes in panels.items():
        cells = {m: attributes[attribute] for m, attributes in gaps[comparison].items()}
        groups = next(iter(cells.values()))["groups"]
        heading = _group_title(attribute, comparison, groups, "")
        if not all(map(_has_gap, cells.values())):
            say(axes, f"{heading}\nNot enough captions to compare two groups.")
            continue
        style_axes(axes, heading, x="percentage points")
        _gap_rows(axes, {m: cell["gap"][f"recall@{recall_at}"] for m, cell in cells.items()})
    first = next(iter(panels.values()))  # all panels share its limits
    first.set_xlim(0, 1.3 * first.get_xlim()[1])  # room for the texts
    return figure


def _gap_rows(axes: Axes, gap_of: Mapping[str, Mapping[str, Any]]) -> None:
    """A row a method: its gap, its interval, and both in numbers."""
    rows = method_rows(list(gap_of))
    intervals = {m: (gap["interval_95"][0], gap["interval_95"][1]) for m, gap in gap_of.items()}
    texts = {
        m: f"{gap_of[m]['gap']:.1f} ({low:.1f} to {high:.1f})"
        for m, (low, high) in intervals.items()
    }
    interval_rows(axes, rows, {m: gap["gap"] for m, gap in gap_of.items()}, intervals, texts)
    name_rows(axes, rows)
    axes.tick_params(labelbottom=True)


@in_style
def demographic_gaps(gaps: Gaps, recall_at: int) -> Figure:
    """Recall of every group for every method; the line between two groups is the gap."""
    title = f"Text-to-image recall@{recall_at} by whom the caption speaks of"
    note = "In brackets: test captions of the group. The line between two groups is the gap."
    figure, panels = _gap_panels(gaps, title, note, _has_scored_group)
    key = f"text_to_image_recall@{recall_at}"
    for (attribute, comparison), axes in panels.items():
        cells = {m: attributes[attribute] for m, attributes in gaps[comparison].items()}
        groups = next(iter(cells.values()))["groups"]
        heading = _group_title(attribute, comparison, groups, "".join(m for _, m in MARKERS))
        if not all(map(_has_scored_group, cells.values())):
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
