"""Which figures there are, and what all of them have in common."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

import visualize
from reporting.figures.gaps import GAP_FIGURES
from reporting.figures.methods import METHOD_FIGURES
from tests.reporting.test_figures import dots, make_curve, make_validation, png
from tests.reporting.test_summary import SUMMARIES, make_summary

ROOT = Path(__file__).parents[1]
SMALL = make_summary(
    3,
    ("influencespace", "random", "full"),
    influence_validation=make_validation(6),
    curve=make_curve(),
)


def test_every_figure_of_the_tree_is_made() -> None:
    assert set(visualize.figures(SUMMARIES["everything"])) == {
        "stage1/cluster_sizes.png",
        "stage2/wrong_captions.png",
        "stage2/influence_scores.png",
        "stage2/influence_validation.png",
        "stage3/cells.png",
        "stage3/cluster_categorization.png",
        "stage3/weight_distribution.png",
        "evaluation/comparison_avg_recall@1.png",
        "evaluation/comparison_avg_recall@5.png",
        "evaluation/comparison_avg_recall@10.png",
        "evaluation/fairness_comparison.png",
        "results/keep_curve.png",
        "results/performance_comparison.png",
        "results/efficiency_comparison.png",
        "results/training_progress.png",
        "results/demographic_gaps.png",
        "results/performance_efficiency_tradeoff.png",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("one seed, one cluster", "hostile text", "two methods", "full data alone", "no random"),
        *("validated with one seed", "too few to validate", "stage 2 not loaded"),
        *("noisy and taken at its word", "a narrow target and a guard"),
        *("a share below the curve", "values sort difficulty"),
    ],
)
def test_every_figure_draws(name: str) -> None:
    for path, make in visualize.figures(SUMMARIES[name]).items():
        figure = make()
        figure.draw_without_rendering()
        assert figure.axes, path


def test_figures_without_their_data_are_left_out() -> None:
    made = visualize.figures(SUMMARIES["stages 2 and 3 not loaded"])
    assert not any(path.startswith(("stage2", "stage3")) for path in made)
    assert set(visualize.figures(SUMMARIES["nothing trained"])) == {
        "stage1/cluster_sizes.png",
        "stage2/wrong_captions.png",
        "stage2/influence_scores.png",
        "stage3/cells.png",
        "stage3/cluster_categorization.png",
        "stage3/weight_distribution.png",
    }
    no_stage_2 = visualize.figures(SUMMARIES["stage 2 not loaded"])
    assert "stage3/cells.png" in no_stage_2
    assert not any(path.startswith("stage2") for path in no_stage_2)
    no_stage_3 = visualize.figures(SUMMARIES["stage 3 not loaded"])
    assert "stage2/influence_scores.png" in no_stage_3
    assert not any(path.startswith("stage3") for path in no_stage_3)


def test_categories_follow_the_rule_where_stage_3_was_not_loaded() -> None:
    with_stage_3 = make_summary(100)
    without = make_summary(100, categorization=None)
    drawn = [
        [
            p.get_facecolor()
            for p in visualize.figures(s)["stage2/influence_scores.png"]().axes[1].patches
        ]
        for s in (with_stage_3, without)
    ]
    assert drawn[0] == drawn[1]


def test_differences_to_random_have_their_sign_and_size() -> None:
    """InfluenceSpace at 30.9 and random at 28.2, in the second row of panels."""
    figure = visualize.figures(SMALL)["results/performance_comparison.png"]()
    influencespace, full = dots(figure.axes[2])
    assert influencespace.tolist() == pytest.approx([2.7, 0.0])
    assert full.tolist() == pytest.approx([3.2, 1.4])


# --- Style --------------------------------------------------------------------------------------


def test_the_small_run_has_every_figure() -> None:
    assert set(visualize.figures(SMALL)) == set(visualize.figures(SUMMARIES["everything"]))


def test_figures_of_methods_are_those_that_need_a_training() -> None:
    bare = visualize.figures(SUMMARIES["nothing trained"])
    assert set(visualize.figures(make_summary(3))) - set(bare) == {*METHOD_FIGURES, *GAP_FIGURES}


@pytest.mark.parametrize("path", visualize.figures(SMALL))
def test_a_figure_neither_takes_nor_leaves_global_state(path: str) -> None:
    make = visualize.figures(SMALL)[path]
    before = dict(matplotlib.rcParams)
    first = png(make())
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    others = {"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9, "axes.grid": True}
    with matplotlib.rc_context(others):
        elsewhere = make()
    assert png(elsewhere) == first


def test_figures_need_no_window() -> None:
    """A backend that cannot be loaded, as a notebook leaves one behind, is never asked for."""
    program = (
        "from matplotlib.figure import Figure\n"
        "import numpy as np\n"
        "from reporting.figures.trust import wrong_captions\n"
        "odds = {'train': np.arange(9.0)}\n"
        "wrong_captions(odds, {}, {'train': {'share': None}}).savefig('/dev/null', format='png')\n"
    )
    environment = {"MPLBACKEND": "module://no_such_window", "PATH": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, env=environment,
                   check=True)  # fmt: skip


def test_seaborn_draws_on_axes_that_it_is_given() -> None:
    """No current axes and no theme: both are global."""
    paths = sorted((ROOT / "reporting" / "figures").glob("*.py"))
    calls = [
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sns.")
    ]
    assert calls
    for call in calls:
        assert "ax" in [keyword.arg for keyword in call.keywords], ast.unparse(call)
    assert not [path for path in paths if "pyplot as" in path.read_text(encoding="utf-8")]
