"""Contact sheets."""

from __future__ import annotations

import numpy as np

from reporting.figures import sheets
from tests.reporting.test_figures import (
    NASTY,
    assert_no_overlap,
    png,
)


def test_contact_sheet() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30 + 9 * i, 40, 3), dtype=np.uint8) for i in range(4)]
    images.append(images[0][..., 0])
    figure = sheets.contact_sheet(images, [NASTY] * 5, heading="Dropped: $5 | _x_", n_columns=3)
    png(figure)
    assert len(figure.axes) == 6
    for axes, image in zip(figure.axes, images, strict=False):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), image)
        caption = axes.title.get_text()
        assert caption.splitlines()[-1].endswith("…")
        assert len(caption.splitlines()) > 2
        assert r"\$x_1\$" in caption
    assert not figure.axes[5].get_images()
    assert_no_overlap(figure, [axes.title for axes in figure.axes])


def test_an_empty_contact_sheet_is_a_heading() -> None:
    figure = sheets.contact_sheet([], [], heading="Nothing was dropped", n_columns=4)
    png(figure)
    assert figure.get_suptitle() == "Nothing was dropped"
