"""Contact sheets: photographs in rows with a title each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reporting.figures.style import INK, in_style, new_figure
from reporting.words import plain


@in_style
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
    figure = new_figure(width, 0.5 + 3.0 * n_rows, plain(heading, 400))
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("S")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
        lines = [w for line in title.splitlines() for w in textwrap.wrap(plain(line, 150), 34)]
        axes.set_title("\n".join(lines), y=0, va="top", pad=-4, fontsize=8, color=INK)
    return figure
