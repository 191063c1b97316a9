"""Histograms: how values are distributed, and which of them were chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from baselines import INFLUENCESPACE
from reporting.figures.style import MUTED, line_color

N_BINS = 40
BARS: dict[str, Any] = {"alpha": 1, "linewidth": 0}


def split_histogram(
    axes: Axes,
    values: Float[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"],
    edges: Float[np.ndarray, " e"],
    names: tuple[str, str],
) -> list[Patch]:
    """Counts of values, upon those of the chosen ones those of the others.

    Args:
        axes: to draw on.
        values: what is counted.
        chosen: which of them stand below, in InfluenceSpace's colour.
        edges: of the bins.
        names: of the chosen and of the others.

    Returns:
        The two entries of a legend, with how many there are.
    """
    counts = (int(chosen.sum()), int((~chosen).sum()))
    labels = [f"{name} ({n:,})" for name, n in zip(names, counts, strict=True)]
    colors = dict(zip(labels, (line_color(INFLUENCESPACE), MUTED), strict=True))
    sns.histplot(
        x=values,
        hue=np.where(chosen, *labels),
        hue_order=labels[::-1],  # the last one stands below
        palette=colors,
        multiple="stack",
        bins=edges,
        legend=False,
        ax=axes,
        **BARS,
    )
    return [Patch(color=color, label=label) for label, color in colors.items()]
