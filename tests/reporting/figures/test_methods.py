"""Figures that compare methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from baselines import FULL, INFLUENCESPACE
from reporting import words
from reporting.figures import methods as methods_module
from reporting.figures import style
from tests.reporting.test_figures import (
    COMPARISONS,
    METHODS,
    SUBSETS,
    assert_no_overlap,
    bar_widths,
    dots,
    make_efficiency,
    make_histories,
    make_metrics,
    n_segments,
    png,
    row_names,
    texts,
    vertical_lines,
)


def test_methods_are_ranked_over_both_comparisons_with_the_full_data_last() -> None:
    def cells(**means: float) -> dict[str, Any]:
        return {m: {"mean_recall": {"mean": v, "std": None}} for m, v in means.items()}

    metrics = {
        "same_epochs": cells(full=90, a=10, b=12, c=1),
        "same_steps": cells(full=90, a=16, b=12, c=1),
    }
    assert methods_module.rank_methods(metrics, "mean_recall") == ["a", "b", "c", "full"]


@pytest.mark.parametrize("methods", SUBSETS)
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_recall_comparison(methods: Sequence[str], n_seeds: int) -> None:
    metrics = make_metrics(methods, n_seeds)
    figure = methods_module.recall_comparison(
        metrics, "avg_recall@5", title="Recall", encoder_recall=12.0
    )
    png(figure)
    for axes, comparison in zip(figure.axes, COMPARISONS, strict=True):
        ranked = methods_module.rank_methods(metrics, "avg_recall@5")
        cells = [metrics[comparison][m]["avg_recall@5"] for m in ranked]
        np.testing.assert_allclose(bar_widths(axes), [*(c["mean"] for c in cells), 12.0])
        assert texts(axes) == [*(words.mean_and_spread(c) for c in cells), "12.0"]
        assert n_segments(axes) == (len(methods) if n_seeds > 1 else 0)
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_xlim()[0] == 0
        assert_no_overlap(figure, axes.texts)
    assert_no_overlap(figure, figure.axes[0].get_yticklabels())
    assert row_names(figure.axes[0])[-1] == "Encoder's own joint space"
    note = figure.get_supxlabel()
    assert ("standard deviation over training seeds" in note) == (n_seeds > 1)


def test_every_figure_gives_influencespace_its_colour() -> None:
    figure = methods_module.recall_comparison(make_metrics(), "mean_recall", title="")
    names = methods_module.rank_methods(make_metrics(), "mean_recall")
    bars = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    colors = {m: to_hex(b.get_facecolor()).upper() for m, b in zip(names, bars, strict=True)}
    assert colors[INFLUENCESPACE] == "#0072B2"
    assert {colors[m] for m in METHODS if m not in (INFLUENCESPACE, FULL)} == {style.MUTED}


@pytest.mark.parametrize("error", [None, 0.4])
def test_performance_comparison(error: float | None) -> None:
    differences = {
        c: {m: (2.0 - i, error) for i, m in enumerate(METHODS) if m != "random"}
        for c in COMPARISONS
    }
    figure = methods_module.performance_comparison(make_metrics(), 12.0, differences)
    png(figure)
    assert len(figure.axes) == 4
    below = figure.axes[2]
    ranked = [
        m for m in methods_module.rank_methods(make_metrics(), "mean_recall") if m != "random"
    ]
    drawn = [float(x) for x, _ in dots(below)]
    assert drawn == [differences["same_epochs"][m][0] for m in ranked]
    assert n_segments(below) == (0 if error is None else len(METHODS) - 1)
    assert 0.0 in vertical_lines(below)
    assert "−4.0" in texts(below)
    places = {t.get_text(): t.get_horizontalalignment() for t in below.texts}
    assert (places["−4.0"], places["+1.0"]) == ("right", "left")  # outside, away from zero
    assert_no_overlap(figure, below.texts)


def test_without_random_there_are_no_differences() -> None:
    metrics = make_metrics((INFLUENCESPACE,), 1)
    figure = methods_module.performance_comparison(metrics, None, {c: {} for c in COMPARISONS})
    png(figure)
    assert len(figure.axes) == 2


@pytest.mark.parametrize("methods", SUBSETS)
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_efficiency_comparison(methods: Sequence[str], n_seeds: int) -> None:
    efficiency = make_efficiency(methods, n_seeds)
    figure = methods_module.efficiency_comparison(efficiency)
    png(figure)
    order = list(style.method_rows(
        sorted(efficiency, key=lambda m: efficiency[m]["curation_seconds"])
    ))  # fmt: skip
    pairs, choosing, epochs, steps = figure.axes
    assert bar_widths(pairs) == [efficiency[m]["n_pairs"] for m in order]
    assert bar_widths(choosing) == [efficiency[m]["curation_seconds"] for m in order]
    for axes, comparison in ((epochs, "same_epochs"), (steps, "same_steps")):
        seconds = [efficiency[m][comparison]["training_seconds"]["mean"] for m in order]
        np.testing.assert_allclose(bar_widths(axes), seconds)
    assert "0.0" not in texts(choosing)
    assert_no_overlap(figure, [t for axes in figure.axes for t in axes.texts])


@pytest.mark.parametrize("methods", SUBSETS)
@pytest.mark.parametrize(("n_seeds", "n_reports"), [(1, 1), (1, 20), (3, 20)])
def test_training_progress(methods: Sequence[str], n_seeds: int, n_reports: int) -> None:
    histories = make_histories(methods, n_seeds, n_reports)
    figure = methods_module.training_progress(histories)
    png(figure)
    training, validation = figure.axes
    assert training.get_xlim()[0] == validation.get_xlim()[0] == 0
    for line, runs in zip(training.lines, histories.values(), strict=True):
        steps = runs[0]["step"]  # a training loss stands in the middle of the steps it is of
        middles = [np.arange(a + 1, b + 1).mean() for a, b in zip([0, *steps], steps, strict=False)]
        np.testing.assert_allclose(np.asarray(line.get_xdata()), middles)
    for line, runs in zip(validation.lines, histories.values(), strict=True):
        mean = np.mean([run["validation_loss"] for run in runs], axis=0)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), mean)
        np.testing.assert_allclose(np.asarray(line.get_xdata()), runs[0]["step"])
    bands = [c for c in validation.collections if isinstance(c, PolyCollection)]
    assert len(bands) == (len(methods) if n_seeds > 1 else 0)
    assert_no_overlap(figure, validation.texts)
    assert ("bands: their standard deviation" in figure.get_supxlabel()) == (n_seeds > 1)


def test_the_names_of_lines_stand_at_their_ends_on_a_logarithmic_axis_too() -> None:
    histories = make_histories((FULL, INFLUENCESPACE), 1, 3)
    for method, last in ((FULL, 0.01), (INFLUENCESPACE, 1.0)):
        histories[method][0]["train_loss"] = [2.0, 1.0, last]
    figure = methods_module.training_progress(histories)
    png(figure)
    training, validation = figure.axes
    assert (training.get_yscale(), validation.get_yscale()) == ("log", "linear")
    assert "logarithmic" in training.get_ylabel()
    below, above = (text.get_position()[1] for text in training.texts)
    low, high = np.log10(training.get_ylim())
    assert below == pytest.approx((-2 - low) / (high - low), abs=0.01)
    assert above == pytest.approx((0 - low) / (high - low), abs=0.01)


@pytest.mark.parametrize("slowest", [20.0, 500.0])
def test_time_is_logarithmic_where_methods_differ_much(slowest: float) -> None:
    methods = (INFLUENCESPACE, "random")
    efficiency = make_efficiency(methods)
    efficiency[INFLUENCESPACE]["curation_seconds"] = slowest
    figure = methods_module.performance_efficiency_tradeoff(make_metrics(methods), efficiency)
    png(figure)
    is_log = slowest > 100  # training alone takes 6.5 s
    for axes in figure.axes:
        assert axes.get_xscale() == ("log" if is_log else "linear")
        assert ("logarithmic" in axes.get_xlabel()) == is_log


@pytest.mark.parametrize("methods", SUBSETS)
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_tradeoff(methods: Sequence[str], n_seeds: int) -> None:
    metrics, efficiency = make_metrics(methods, n_seeds), make_efficiency(methods, n_seeds)
    figure = methods_module.performance_efficiency_tradeoff(metrics, efficiency)
    png(figure)
    for axes, comparison in zip(figure.axes, COMPARISONS, strict=True):
        for (x, y), method in zip(dots(axes), methods, strict=True):
            e = efficiency[method]
            seconds = e["curation_seconds"] + e[comparison]["training_seconds"]["mean"]
            assert (x, y) == (
                pytest.approx(seconds),
                pytest.approx(metrics[comparison][method]["mean_recall"]["mean"]),
            )
        assert_no_overlap(figure, axes.texts)
