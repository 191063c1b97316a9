"""The figure of how likely captions are wrong."""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Rectangle

from reporting.figures import trust
from tests.reporting.test_figures import (
    assert_no_overlap,
    make_log_odds,
    make_trust,
    png,
    vertical_lines,
)


def test_wrong_captions() -> None:
    odds, trusted = make_log_odds()
    figure = trust.wrong_captions(odds, trusted, make_trust(None, 0.2))
    png(figure)
    n_trusted = {split: int(rows.sum()) for split, rows in trusted.items()}
    assert figure.get_suptitle() == (
        f"{n_trusted['validation']} of 100 validation pairs and {n_trusted['test']} of 300 test"
        " pairs are trusted"
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Training: 500 pairs\nwrong captions: 19.8 % (17.8 to 21.8)",
        "Validation: 100 pairs\nwrong captions: too few pairs to tell",
        "Test: 300 pairs\nwrong captions: 20.0 % (18.0 to 22.0)",
    ]
    heights = [
        [p.get_height() for p in axes.patches if isinstance(p, Rectangle)] for axes in figure.axes
    ]
    assert sum(heights[0]) == 500
    assert sum(heights[1][:40]) == n_trusted["validation"]  # below them those that are not
    assert sum(heights[1][40:]) == 100 - n_trusted["validation"]
    assert figure.axes[0].get_legend() is None
    legend = figure.axes[2].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        f"trusted ({n_trusted['test']})",
        f"not trusted ({300 - n_trusted['test']})",
    ]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert all(vertical_lines(axes) == {0.0} for axes in figure.axes)
    assert "is asked what helps" in figure.get_supxlabel().replace("\n", " ")
    assert_no_overlap(figure, [axes.title for axes in figure.axes])


def test_wrong_captions_where_all_are_taken_at_their_word() -> None:
    odds = {split: np.ones(1) for split in ("train", "validation", "test")}
    trusted = {"validation": np.ones(1, dtype=bool), "test": np.zeros(1, dtype=bool)}
    figure = trust.wrong_captions(odds, trusted, make_trust(taken_at_word=True))
    png(figure)
    assert figure.get_suptitle().startswith("1 of 1 validation pair and 0 of 1 test pair")
    assert "taken at their word" in figure.get_supxlabel().replace("\n", " ")
    unknown = trust.wrong_captions(odds, {}, make_trust())
    assert unknown.get_suptitle() == "Which captions are likely wrong"
