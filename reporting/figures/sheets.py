"""Contact sheets: photographs in rows with a title each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reporting.figures.style import INK, in_style, new_figure
from reporting.lettering import drawable_lines
from reporting.widths import shorten
from reporting.words import plain

CAPTION_COLUMNS, LINE_COLUMNS = 150, 34


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
        lines = [
            drawn
            for line in title.splitlines()
            for drawn in drawable_lines(shorten(line, CAPTION_COLUMNS), LINE_COLUMNS)
        ]
        axes.set_title("\n".join(lines), y=0, va="top", pad=-4, fontsize=8, color=INK)
    return figure
