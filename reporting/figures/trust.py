"""The figure of how likely the captions of each split are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.figures.histograms import BARS, N_BINS, split_histogram
from reporting.figures.style import INK, MUTED, in_style, new_figure, round_ticks, style_axes
from reporting.words import SPLIT_LABELS, count


@in_style
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
    figure = new_figure(12.0, 3.6, title, note)
    panels = figure.subplots(1, len(log_odds), sharex=True, squeeze=False)[0]
    edges = np.histogram_bin_edges(np.concatenate(list(log_odds.values())), N_BINS)
    for axes, (split, values) in zip(panels, log_odds.items(), strict=True):
        _trust_histogram(axes, values, trusted.get(split), edges)
        heading = f"{SPLIT_LABELS.get(split, split)}: {count(len(values), 'pair')}"
        style_axes(
            axes, f"{heading}\n{_wrong_share(faults[split])}", x="log odds", y="pairs", grid="y"
        )
        round_ticks(axes.yaxis, 5, whole=True)
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
        sns.histplot(x=values, bins=edges, color=MUTED, ax=axes, **BARS)
    else:
        entries = split_histogram(axes, values, trusted, edges, ("trusted", "not trusted"))
        axes.legend(handles=entries, loc="upper left")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.axvline(0, color=INK, linewidth=1, linestyle="--")
