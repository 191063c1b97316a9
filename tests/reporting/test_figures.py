"""Figures: what is drawn, read back from the artists, for few and many clusters and methods."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text

from reporting import words
from reporting.figures import gaps as gaps_module
from reporting.figures import methods as methods_module
from reporting.figures import sheets, style, topics, trust
from reporting.words import FULL, INFLUENCESPACE

METHODS = (
    FULL,
    INFLUENCESPACE,
    "random",
    "clip_score_filtering",
    "diversity_sampling",
    "coreset_selection",
    "individual_influence",
    "semdedup",
    "density_pruning",
    "neg_clip_loss",
    "neg_clip_loss_normsim",
    "text_alpha_sampling",
    "gradient_similarity",
)
LEVELS = (  # mean recall
    *(31.4, 30.9, 28.2, 31.6, 27.9, 26.3, 29.8, 27.6, 28.0, 29.9, 28.15, 28.1, 30.2),
)
SECONDS = (0.0, 14.2, 0.001, 0.002, 0.01, 21.7, 9.6, 0.1, 0.05, 2.3, 2.5, 0.8, 2.9)  # to choose
COMPARISONS = ("same_epochs", "same_steps")
WORDS = "dog beach snow bicycle water child mountain red shirt ball jump grass street crowd".split()
NASTY = "a|b $x_1$ *bold* 100 % `code` <b>\nnew line " + "very " * 60 + "long 犬"


# --- Invented runs, shared with the tests of the report ---------------------------------------


def make_terms(n_clusters: int, *, nasty: bool = False) -> list[list[str]]:
    terms = [[WORDS[(3 * k + 5 * i) % len(WORDS)] for i in range(6)] for k in range(n_clusters)]
    if nasty:
        terms[0] = [NASTY]
        terms[-1] = []
    return terms


def make_categorization(n_clusters: int, *, nasty: bool = False) -> list[dict[str, Any]]:
    """Clusters by rising influence, categories by thresholds of -0.1 % and 1 %."""
    rng = np.random.default_rng(n_clusters)
    scores = np.sort(rng.normal(0.2, 0.7, n_clusters))
    stderr = rng.gamma(4, 0.05, n_clusters)
    sizes = rng.negative_binomial(2, 0.04, n_clusters) + 1
    terms = make_terms(n_clusters, nasty=nasty)
    entries = []
    for rank, k in enumerate(rng.permutation(n_clusters)):
        score, error, size = float(scores[rank]), float(stderr[rank]), int(sizes[rank])
        certain = abs(score) > 1.28 * error
        category = (
            "harmful"
            if certain and score < -0.1
            else "beneficial"
            if certain and score > 1
            else "neutral"
        )
        kept = round(size * {"harmful": 0.0, "neutral": 0.85, "beneficial": 1.0}[category])
        entries.append(
            {
                "cluster": int(k),
                "terms": terms[k],
                "category": category,
                "influence_percent": score,
                "stderr_percent": error,
                "size": size,
                "pairs_kept": kept,
                "pairs_dropped": size - kept,
                "cells": make_cells(size, kept, 2 * int(k)),
            }
        )
    return entries


def make_cells(size: int, kept: int, first: int) -> list[dict[str, Any]]:
    """A cluster's cells: the pairs that were dropped, and the others."""
    sizes = [s for s in (size - kept, kept) if s]
    return [
        {
            "cell": first + i,
            "category": "harmful" if i == 0 else "neutral",
            "mean_clip_score": 0.12 + 0.2 * i,
            "near_copies": i == 1,
            "influence_percent": (2 * i - 1) * 0.01 * (first + 1),
            "stderr_percent": 0.02,
            "size": s,
            "pairs_kept": 0 if (size - kept) and i == 0 else s,
            "meaning": "",
        }
        for i, s in enumerate(sizes)
    ]


def make_kinds(*, near_copies: bool = True, influence: bool = True) -> list[dict[str, Any]]:
    """Four quarters of agreement, the lowest of which hurts and is mostly dropped."""
    names = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
    return [
        {
            "agreement": f"{name} of agreement",
            "near_copies": is_copy,
            "pairs": 1000 if not is_copy else 250,
            "kept": (300 if band == 0 else 990) if not is_copy else 50,
            "faulty": 700 if band == 0 else 10,
            "influence": 100.0 * band - 150 if influence else None,
        }
        for band, name in enumerate(names)
        for is_copy in ((False, True) if near_copies else (False,))
    ]


def make_metrics(
    methods: Sequence[str] = METHODS, n_seeds: int = 3, mean_recall: dict[str, float] | None = None
) -> dict[str, Any]:
    """Recall that rises with k; by method from 24 to 32, or as told."""
    levels = dict(zip(METHODS, LEVELS, strict=True))
    levels |= mean_recall or {}
    metrics: dict[str, Any] = {}
    for shift, comparison in enumerate(COMPARISONS):
        metrics[comparison] = {}
        for i, method in enumerate(methods):
            level = levels.get(method, 20.0) + (0.6 * shift if method != FULL else 0)
            std = None if n_seeds == 1 else 0.25 + 0.05 * i
            cells = {}
            for k, factor in ((1, 0.45), (5, 1.1), (10, 1.45)):
                for name, tilt in (("image_to_text", 1.05), ("text_to_image", 0.95), ("avg", 1.0)):
                    cells[f"{name}_recall@{k}"] = {"mean": level * factor * tilt, "std": std}
            metrics[comparison][method] = cells | {"mean_recall": {"mean": level, "std": std}}
    return metrics


def make_efficiency(
    methods: Sequence[str] = METHODS, n_seeds: int = 3, n: int = 5000, n_kept: int = 4000
) -> dict[str, Any]:
    seconds = dict(zip(METHODS, SECONDS, strict=True))
    efficiency = {}
    for method in methods:
        kept = n if method == FULL else n_kept
        cost = {"same_epochs": kept / n, "same_steps": 1.0}
        efficiency[method] = {
            "n_pairs": kept,
            "data_reduction": 1 - kept / n,
            "curation_seconds": seconds.get(method, 1.0),
        } | {
            comparison: {
                "n_steps": round(1560 * cost[comparison]),
                "relative_training_cost": cost[comparison],
                "training_seconds": {
                    "mean": 8.1 * cost[comparison],
                    "std": None if n_seeds == 1 else 0.2,
                },
            }
            for comparison in COMPARISONS
        }
    return efficiency


def make_gaps(
    methods: Sequence[str] = METHODS, *, adult: int = 744, child: int = 301
) -> dict[str, Any]:
    def attribute(groups: dict[str, tuple[int, float]], shift: float) -> dict[str, Any]:
        scored = {g: recall for g, (n, recall) in groups.items() if n >= 20}
        report: dict[str, Any] = {"groups": {}, "gap": None}
        for g, (n, recall) in groups.items():
            report["groups"][g] = {"n_queries": n, "too_small": n < 20}
            for k in (1, 5, 10) if n >= 20 else ():
                report["groups"][g][f"text_to_image_recall@{k}"] = recall + shift + k
        if len(scored) > 1:
            gap = max(scored.values()) - min(scored.values())
            report["gap"] = {
                f"recall@{k}": {"gap": gap, "interval_95": [max(0.1, gap - 2.5), gap + 3.1]}
                for k in (1, 5, 10)
            }
        return report

    return {
        comparison: {
            method: {
                "gender": attribute({"female": (412, 27.0 + 0.3 * i), "male": (688, 24.1)}, j),
                "age": attribute({"child": (child, 22.0 + 0.4 * i), "adult": (adult, 26.5)}, j),
            }
            for i, method in enumerate(methods)
        }
        for j, comparison in enumerate(COMPARISONS)
    }


def make_histories(
    methods: Sequence[str] = METHODS, n_seeds: int = 3, n_reports: int = 20
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    histories: dict[str, Any] = {}
    for i, method in enumerate(methods):
        steps = np.linspace(60, 1560 if method == FULL else 1248, n_reports).astype(int)
        fall = np.exp(-steps / 400)
        histories[method] = [
            {
                "step": [int(s) for s in steps],
                "train_loss": list(0.4 + 0.05 * i + 2.6 * fall + rng.normal(0, 0.02, n_reports)),
                "validation_loss": list(
                    2.2 + 0.04 * i + 1.1 * fall + rng.normal(0, 0.01, n_reports)
                ),
            }
            for _ in range(n_seeds)
        ]
    return histories


def make_agreement(spearman: float | None = 0.9, **changes: Any) -> dict[str, Any]:
    """One check's agreement; `changes` replace rank correlations of predictors, or the rest."""
    own = {"spearman": spearman, "pearson": 0.95, "slope": 1.1}
    if spearman is None:
        own = dict.fromkeys(own, None)
    found: dict[str, Any] = {"estimator": own, "ceiling": 0.98, "seed_agreement": 0.92}
    for name, r in (("size", 0.4), ("clip_score", 0.5), ("gradient_similarity", 0.6)):
        r = changes.pop(name, r)
        found[name] = {"spearman": r, "pearson": r, "slope": 1.0 if r is not None else None}
    found["estimator"]["slope"] = changes.pop("slope", own["slope"])
    return found | changes


def make_trust(
    validation_share: float | None = 0.01, test_share: float | None = 0.01, **changes: Any
) -> dict[str, Any]:
    """What is said of 5,000 training, 1,000 validation and 5,000 test pairs."""

    def part(n: int, share: float | None, **more: int) -> dict[str, Any]:
        low, high = (None, None) if share is None else (0.9 * share, 1.1 * share)
        return {"pairs": n, "share": share, "low": low, "high": high, **more}

    return {
        "train": part(5000, 0.198),
        "validation": part(1000, validation_share, trusted=900, near_copies=20),
        "test": part(5000, test_share, trusted=4800),
        "taken_at_word": False,
    } | changes


def make_log_odds() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Log odds of each split, and which held-out pairs are trusted."""
    rng = np.random.default_rng(0)
    sizes = {"train": 500, "validation": 100, "test": 300}
    odds = {split: rng.normal(2, 3, n) for split, n in sizes.items()}
    return odds, {split: odds[split] > 0 for split in ("validation", "test")}


def make_validation(
    n: int = 20, n_seeds: int = 3, spearman: float | None = 0.9, **changes: Any
) -> dict[str, Any]:
    """Effects of n clusters on the validation loss, predicted and real, in percent of it."""
    rng = np.random.default_rng(n)
    checks: dict[str, Any] = {}
    points = {}
    for check, shift, scale in (("loco", 0.5, 1.0), ("small_weight", 0.05, 0.1), ("lds", 12, 3)):
        predicted = scale * rng.normal(size=n) + shift
        points[check] = [
            {
                "predicted": float(x),
                "predicted_stderr": float(scale * rng.gamma(4, 0.03)),
                "real": float(1.1 * x + 0.2 * scale * rng.normal()),
                "real_stderr": float(scale * rng.gamma(4, 0.03)) if n_seeds > 1 else 0.0,
                "size": 50.0,
                "clip_score": 0.3,
                "gradient_similarity": 0.1,
            }
            for x in predicted
        ]
        checks[check] = make_agreement(spearman, **changes)
        if n_seeds == 1:
            checks[check] |= {"ceiling": None, "seed_agreement": None}
    seeds = list(range(100, 100 + n_seeds))
    return {
        **checks,
        "clusters": list(range(n)),
        "seeds": seeds,
        "reference_seeds": seeds[:1],
        "unit": "percent of the validation loss",
        "points": points,
    }


# --- Reading figures back -----------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def bar_widths(axes: Axes) -> list[float]:
    return [float(p.get_width()) for p in axes.patches if isinstance(p, Rectangle)]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def row_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def n_segments(axes: Axes) -> int:
    """Line segments of error bars and intervals."""
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    return sum(len(c.get_segments()) for c in lines)


def assert_no_overlap(figure: Figure, artists: Sequence[Text]) -> None:
    """No two of the texts touch, and none leaves the figure."""
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(a) for a in artists if a.get_text()]  # without leader lines
    width, height = figure.get_size_inches() * figure.dpi
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
        for other in boxes[:i]:
            assert not box.overlaps(other), (box, other)


def columns_of(
    categorization: Sequence[dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, standard errors, categories and sizes in the order of the clusters."""
    ordered = sorted(categorization, key=lambda c: c["cluster"])
    return (
        np.array([c["influence_percent"] / 100 for c in ordered]),
        np.array([c["stderr_percent"] / 100 for c in ordered]),
        np.array([c["category"] for c in ordered]),
        np.array([c["size"] for c in ordered]),
    )


def influence_figure(n_clusters: int, *, nasty: bool = False, scale: float = 1.0) -> Figure:
    scores, stderr, categories, _ = columns_of(make_categorization(n_clusters))
    return topics.influence_scores(
        scale * scores,
        scale * stderr,
        make_terms(n_clusters, nasty=nasty),
        categories,
        harmful_threshold=-0.001,
        beneficial_threshold=0.01,
    )


# --- Text ---------------------------------------------------------------------------------------


def test_outside_text_is_drawn_as_it_stands() -> None:
    assert words.plain("costs $5 or $6_x") == r"costs \$5 or \$6_x"
    assert words.plain("two\nlines\tand  spaces") == "two lines and spaces"
    assert words.plain("a 犬 runs") == "a □ runs"
    assert words.plain("x" * 50, 10) == "x" * 9 + "…"


def test_a_dollar_takes_its_room() -> None:
    """As mathematics, `$bc$` would lose its dollars."""
    figure = Figure(figsize=(4, 1))
    dollars, plain = (figure.text(0, 0, words.plain(text)) for text in ("a$bc$", "abc"))
    figure.draw_without_rendering()
    widths = [text.get_window_extent().width for text in (dollars, plain)]
    assert widths[0] > 1.4 * widths[1]


def test_names_for_people() -> None:
    assert words.method_label("coreset_selection") == "Coreset (k-centre)"
    assert words.method_label("my_new_method") == "My new method"
    assert words.cluster_label(7, ["dog", "beach"]) == "7: dog, beach"
    assert words.cluster_label(7, []) == "cluster 7"
    assert words.count(1, "cluster") == "1 cluster"
    assert words.count(1200, "cluster") == "1,200 clusters"
    assert words.mean_and_spread({"mean": 31.24, "std": 0.349}) == "31.2 ± 0.3"
    assert words.mean_and_spread({"mean": 31.24, "std": None}, 2) == "31.24"


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.0, None, "0"),
        (0.004, None, "<0.01"),
        (0.128, 0.012, "0.13 ± 0.01"),
        (0.128, 0.001, "0.13 ± <0.01"),
        (1234.56, 0.04, "1,234.6 ± <0.1"),
    ],
)
def test_seconds_in_words(mean: float, std: float | None, text: str) -> None:
    assert words.seconds_and_spread({"mean": mean, "std": std}) == text


# --- Layout arithmetic --------------------------------------------------------------------------


def test_labels_are_spread_by_hand() -> None:
    apart = style.spread_out(np.array([5.0, 1.0, 5.0]), 1.0, 0.0, 10.0)
    np.testing.assert_allclose(apart, [4.5, 1.0, 5.5])
    squeezed = style.spread_out(np.array([9.8, 10.0]), 1.0, 0.0, 10.0)
    np.testing.assert_allclose(squeezed, [9.0, 10.0])


@given(
    arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 10)),
    st.floats(0.01, 0.8),
)
def test_spread_labels_keep_order_distance_and_bounds(positions: np.ndarray, gap: float) -> None:
    apart = style.spread_out(positions, gap, 0.0, 10.0)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(apart[order]) >= gap - 1e-9).all()
    assert apart.min() >= -1e-9
    assert apart.max() <= 10 + 1e-9


def test_extremes_of_few_and_many() -> None:
    assert topics.extremes(3) == [0, 1, 2]
    assert topics.extremes(100, n_each=2) == [0, 1, 98, 99]


def test_full_data_and_encoder_stand_apart_below() -> None:
    rows = style.method_rows([FULL, "random", words.ENCODER, INFLUENCESPACE])
    assert rows == {"random": 0, INFLUENCESPACE: 1, FULL: 2.4, words.ENCODER: 3.4}
    assert style.method_rows([FULL]) == {FULL: 0}


def test_methods_are_ranked_over_both_comparisons_with_the_full_data_last() -> None:
    def cells(**means: float) -> dict[str, Any]:
        return {m: {"mean_recall": {"mean": v, "std": None}} for m, v in means.items()}

    metrics = {
        "same_epochs": cells(full=90, a=10, b=12, c=1),
        "same_steps": cells(full=90, a=16, b=12, c=1),
    }
    assert methods_module.rank_methods(metrics, "mean_recall") == ["a", "b", "c", "full"]


def test_effective_size_by_hand() -> None:
    assert topics.effective_size(np.ones(7)) == pytest.approx(7)
    assert topics.effective_size(np.array([1.5, 0.5])) == pytest.approx(4 / 2.5)


# --- Clusters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_cluster_sizes(n_clusters: int) -> None:
    sizes = columns_of(make_categorization(n_clusters))[3]
    figure = topics.cluster_sizes(sizes, make_terms(n_clusters, nasty=True))
    png(figure)
    labelled = figure.axes[-1]
    falling = np.sort(sizes)[::-1]
    shown = falling if n_clusters <= 30 else np.r_[falling[:10], falling[-10:]]
    assert bar_widths(labelled) == list(shown)
    assert texts(labelled) == [f"{size:,}" for size in shown]
    assert_no_overlap(figure, labelled.get_yticklabels())
    assert_no_overlap(figure, labelled.texts)
    for text in labelled.texts:  # the median's line stays behind the numbers
        patch = text.get_bbox_patch()
        assert patch is not None
        assert to_hex(patch.get_facecolor()) == "#ffffff"
        assert all(line.get_zorder() < text.get_zorder() for line in labelled.lines)
    if n_clusters > 30:
        heights = [p.get_height() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
        assert heights == list(falling)
    title = figure.get_suptitle()
    assert f"{sizes.sum():,} training pairs in {words.count(n_clusters, 'cluster')}" == title


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_influence_scores(n_clusters: int) -> None:
    figure = influence_figure(n_clusters, nasty=True)
    png(figure)
    scores, _, categories, _ = columns_of(make_categorization(n_clusters))
    order = np.argsort(-scores)
    shown = order if n_clusters <= 30 else np.r_[order[:10], order[-10:]]
    labelled = figure.axes[-1]
    np.testing.assert_allclose(bar_widths(labelled), 100 * scores[shown])
    bars = [p for p in labelled.patches if isinstance(p, Rectangle)]
    assert [to_hex(p.get_facecolor()).upper() for p in bars] == [
        style.CATEGORY_COLORS[categories[k]].upper() for k in shown
    ]
    assert n_segments(labelled) == len(shown)
    assert_no_overlap(figure, labelled.get_yticklabels())
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        f"{c} ({int((categories == c).sum())})" for c in ("beneficial", "neutral", "harmful")
    ]
    if n_clusters > 30:
        assert n_segments(figure.axes[0]) == n_clusters
        assert_no_overlap(figure, [*legend.get_texts(), figure.axes[0].title])


def vertical_lines(axes: Axes) -> set[float]:
    """Where lines from the bottom to the top of the panel stand."""
    lines = [line for line in axes.lines if not isinstance(line, AxLine)]
    spans = [np.asarray(line.get_xdata()) for line in lines]
    tall = [np.asarray(line.get_ydata()).tolist() == [0, 1] for line in lines]
    return {round(float(x[0]), 6) for x, is_tall in zip(spans, tall, strict=True) if is_tall}


def test_thresholds_are_drawn_only_where_the_scores_reach_them() -> None:
    assert vertical_lines(influence_figure(20).axes[0]) == {0.0, -0.1, 1.0}
    assert vertical_lines(influence_figure(20, scale=0.3).axes[0]) == {0.0, -0.1}
    assert vertical_lines(influence_figure(20, scale=0.01).axes[0]) == {0.0}


def test_error_bars_of_influence_say_what_they_hold() -> None:
    note = influence_figure(20).get_supxlabel().replace("\n", " ")
    assert "pairs sampled, the reference models and the folds retrained" in note


def validation_figure(n: int, **changes: Any) -> tuple[Figure, dict[str, Any]]:
    checks = make_validation(n, **changes)
    return topics.influence_validation(checks["points"], checks), checks


@pytest.mark.parametrize("n", [1, 6, 20, 200])
def test_influence_validation(n: int) -> None:
    figure, checks = validation_figure(n)
    png(figure)
    assert len(figure.axes) == 3
    for axes, check in zip(figure.axes, ("loco", "small_weight", "lds"), strict=True):
        dots = [c for c in axes.collections if isinstance(c, PathCollection)]
        points = [(p["predicted"], p["real"]) for p in checks["points"][check]]
        np.testing.assert_allclose(np.asarray(dots[0].get_offsets()), points)
        bars = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
        lengths = [[float(np.ptp(s, axis=0).max()) for s in segments] for segments in bars]
        errors = [
            [2 * p[name] for p in checks["points"][check]]
            for name in ("predicted_stderr", "real_stderr")
        ]
        np.testing.assert_allclose(lengths, errors)
        ideal = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert isinstance(ideal, AxLine)
        assert ideal.get_slope() == 1
        start = ideal.get_xy1()
        assert start is not None
        assert start[0] == start[1]
        # Every point with its bars is in the panel, as is zero where it is drawn.
        assert axes.viewLim.x0 < min(x for x, _ in points)
        assert axes.viewLim.x1 > max(x for x, _ in points)
        assert axes.viewLim.y0 < min(y for _, y in points)
        assert axes.viewLim.y1 > max(y for _, y in points)
        heading = axes.get_title(loc="left").splitlines()
        assert heading[0] == words.CHECK_LABELS[check]
        assert heading[1] == "Spearman 0.90 (ceiling 0.98), slope 1.10"
    assert figure.axes[0].get_xlabel() == (
        "predicted change of the validation loss when the cluster is left out (%)"
    )
    large, *small = (axes.get_window_extent() for axes in figure.axes)
    assert large.width * large.height > 2 * max(box.width * box.height for box in small)
    labels = [
        artist
        for axes in figure.axes
        for artist in (axes.xaxis.label, axes.yaxis.label, axes._left_title)  # type: ignore[attr-defined]
    ]
    assert_no_overlap(figure, labels)


def test_axes_of_validation_share_a_range_where_it_is_not_much_larger() -> None:
    figure, _ = validation_figure(20)
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()
    checks = make_validation(20)
    for point in checks["points"]["loco"]:
        point |= {"real": 0.02 * point["real"], "real_stderr": 0.0}
    figure = topics.influence_validation(checks["points"], checks)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 0.3 * np.ptp(figure.axes[0].get_xlim())


def test_zero_is_drawn_where_effects_reach_it() -> None:
    figure, _ = validation_figure(20)
    assert vertical_lines(figure.axes[0]) == {0.0}
    assert vertical_lines(figure.axes[2]) == set()


def test_validation_of_one_seed_claims_no_spread() -> None:
    figure, _ = validation_figure(20, n_seeds=1, spearman=None)
    png(figure)
    assert "retraining has one seed" in figure.get_supxlabel().replace("\n", " ")
    assert "Spearman – (ceiling –), slope –" in figure.axes[0].get_title(loc="left")
    figure, _ = validation_figure(20, spearman=-0.5)
    assert "Spearman −0.50" in figure.axes[0].get_title(loc="left")
    assert "mean over retraining seeds" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_categorization(n_clusters: int) -> None:
    categorization = make_categorization(n_clusters)
    figure = topics.cluster_categorization(categorization)
    png(figure)
    bars, dots = figure.axes
    expected = []
    for category in ("beneficial", "neutral", "harmful"):
        members = [c for c in categorization if c["category"] == category]
        expected += [sum(c[key] for c in members) for key in ("pairs_kept", "pairs_dropped")]
    assert bar_widths(bars) == expected
    assert f"{expected[2]:,} kept, {expected[3]:,} dropped" in texts(bars)[1]
    offsets = np.asarray(dots.collections[0].get_offsets())
    np.testing.assert_allclose(
        offsets[:, 1], [100 * c["pairs_kept"] / c["size"] for c in categorization]
    )
    assert_no_overlap(figure, [*bars.texts, bars.title, dots.title])


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


@pytest.mark.parametrize("near_copies", [True, False])
@pytest.mark.parametrize("influence", [True, False])
def test_cells(near_copies: bool, influence: bool) -> None:
    kinds = make_kinds(near_copies=near_copies, influence=influence)
    values = np.random.default_rng(0).normal(0, 1, 500)
    kept = values > -0.8
    faulty = values < -1
    figure = topics.cells(values, kept, faulty, kinds)
    png(figure)
    histogram, shares, *rest = figure.axes
    assert len(rest) == influence
    assert figure.get_suptitle().startswith(f"{(~kept).sum()} of 500 training pairs")
    heights = [p.get_height() for p in histogram.patches if isinstance(p, Rectangle)]
    assert sum(heights[:40]) == kept.sum()
    assert sum(heights[40:]) == (~kept).sum()
    outline = [p for p in histogram.patches if isinstance(p, StepPatch)]
    assert [sum(p.get_data()[0]) for p in outline] == [faulty.sum()]
    legend = histogram.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        f"kept ({kept.sum()})",
        f"dropped ({(~kept).sum()})",
        f"known faults ({faulty.sum()})",
    ]
    assert bar_widths(shares)[1::2] == [100 * k["kept"] / k["pairs"] for k in kinds]
    assert row_names(shares)[0] == "lowest quarter"
    assert ("second quarter, near copies" in row_names(shares)) == near_copies
    assert texts(shares)[0] == "300 of 1,000"
    if influence:
        assert bar_widths(rest[0]) == [k["influence"] for k in kinds]
        assert texts(rest[0])[0] == "−150"
        assert "Influence:" in figure.get_supxlabel()
    else:
        assert "Influence:" not in figure.get_supxlabel()
    assert_no_overlap(figure, [*shares.texts, shares.title, histogram.title])


def test_cells_of_one_kind_without_known_faults() -> None:
    (kind,) = make_kinds(near_copies=False)[:1]
    kind |= {"agreement": NASTY, "pairs": 1, "kept": 1, "influence": 0.0}
    figure = topics.cells(np.zeros(1), np.ones(1, dtype=bool), None, [kind])
    png(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert "known faults" not in " ".join(t.get_text() for t in legend.get_texts())
    assert bar_widths(figure.axes[1])[1] == 100.0


@pytest.mark.parametrize("n_clusters", [1, 3, 20, 400])
def test_weights(n_clusters: int) -> None:
    categorization = make_categorization(n_clusters)
    weights = {str(k): 0.5 + k % 3 for k in range(n_clusters)}
    samples = np.linspace(0.5, 1.5, 200)
    figure = topics.weight_distribution(samples, weights, categorization)
    png(figure)
    histogram, dots = figure.axes
    bars = [p.get_height() for p in histogram.patches if isinstance(p, Rectangle)]
    assert sum(bars) == 200
    offsets = np.asarray(dots.collections[0].get_offsets())
    np.testing.assert_allclose(offsets[:, 1], [weights[str(c["cluster"])] for c in categorization])
    low, high = dots.get_ylim()
    assert low < 0
    assert high > max(weights.values())
    assert 1.0 in vertical_lines(histogram)


def test_equal_weights_are_one_bar() -> None:
    categorization = make_categorization(3)
    cluster_weights = dict.fromkeys(("0", "1", "2"), 1.0)
    figure = topics.weight_distribution(np.ones(200), cluster_weights, categorization)
    png(figure)
    histogram, _ = figure.axes
    (bar,) = (p for p in histogram.patches if isinstance(p, Rectangle))
    assert bar.get_height() == 200
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(1)
    assert histogram.get_title(loc="left") == "Every kept pair weighs the same"
    assert "No pair counts more than another" in figure.get_supxlabel()


# --- Methods ------------------------------------------------------------------------------------

SUBSETS = (METHODS, ("random", FULL), (INFLUENCESPACE,), (FULL,), ("a_method_$x_named_" * 9, FULL))


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
    drawn = [float(np.asarray(c.get_offsets())[0, 0]) for c in below.collections
             if isinstance(c, PathCollection)]  # fmt: skip
    assert drawn == [differences["same_epochs"][m][0] for m in ranked]
    assert n_segments(below) == (0 if error is None else len(METHODS) - 1)
    assert 0.0 in vertical_lines(below)
    assert "−4.0" in texts(below)
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


@pytest.mark.parametrize("methods", SUBSETS)
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_tradeoff(methods: Sequence[str], n_seeds: int) -> None:
    metrics, efficiency = make_metrics(methods, n_seeds), make_efficiency(methods, n_seeds)
    figure = methods_module.performance_efficiency_tradeoff(metrics, efficiency)
    png(figure)
    for axes, comparison in zip(figure.axes, COMPARISONS, strict=True):
        points = [np.asarray(c.get_offsets())[0] for c in axes.collections
                  if isinstance(c, PathCollection)]  # fmt: skip
        for (x, y), method in zip(points, methods, strict=True):
            e = efficiency[method]
            seconds = e["curation_seconds"] + e[comparison]["training_seconds"]["mean"]
            assert (x, y) == (
                pytest.approx(seconds),
                pytest.approx(metrics[comparison][method]["mean_recall"]["mean"]),
            )
        assert_no_overlap(figure, axes.texts)


# --- Demographic gaps ---------------------------------------------------------------------------


@pytest.mark.parametrize("methods", SUBSETS)
def test_fairness_comparison(methods: Sequence[str]) -> None:
    gaps = make_gaps(methods)
    figure = gaps_module.fairness_comparison(gaps, 5)
    png(figure)
    assert len(figure.axes) == 4
    first = figure.axes[0]
    rows = style.method_rows(list(methods))
    for line, method in zip(first.lines, rows, strict=True):
        gap = gaps["same_epochs"][method]["gender"]["gap"]["recall@5"]
        assert list(np.asarray(line.get_xdata())) == gap["interval_95"]
    assert first.get_xlim()[0] == 0
    assert "gender: female (412), male (688)" in first.get_title(loc="left")
    assert_no_overlap(figure, first.texts)


def test_an_interval_that_misses_its_gap_is_drawn() -> None:
    gaps = make_gaps(("random", FULL))
    gaps["same_epochs"]["random"]["gender"]["gap"]["recall@5"] = {
        "gap": 0.0,
        "interval_95": [0.4, 3.0],
    }
    png(gaps_module.fairness_comparison(gaps, 5))


@pytest.mark.parametrize(("child", "adult"), [(7, 744), (7, 3)])
def test_groups_too_small_are_named_and_not_drawn(child: int, adult: int) -> None:
    gaps = make_gaps(child=child, adult=adult)
    fairness, recalls = (
        gaps_module.fairness_comparison(gaps, 5),
        gaps_module.demographic_gaps(gaps, 5),
    )
    png(fairness)
    png(recalls)
    age = fairness.axes[2]
    assert "child (7, too few)" in texts(age)[0]
    assert "Not enough captions to compare two groups" in texts(age)[0]
    age = recalls.axes[2]
    dots = [c for c in age.collections if isinstance(c, PathCollection)]
    if adult > 20:
        assert len(dots) == len(METHODS)
        assert "● child (7, too few), ◇ adult (744)" in age.get_title(loc="left")
    else:
        assert not dots
        assert "Not enough captions to score any group" in texts(age)[0]


def test_demographic_gaps() -> None:
    gaps = make_gaps()
    figure = gaps_module.demographic_gaps(gaps, 10)
    png(figure)
    lines = figure.axes[0].lines
    rows = style.method_rows(METHODS)
    for line, method in zip(lines, rows, strict=True):
        groups = gaps["same_epochs"][method]["gender"]["groups"].values()
        recalls = [g["text_to_image_recall@10"] for g in groups]
        assert list(np.asarray(line.get_xdata())) == [min(recalls), max(recalls)]
    titles = [axes.title for axes in figure.axes]
    assert_no_overlap(figure, titles)
    assert "● female (412), ◇ male (688)" in figure.axes[0].get_title(loc="left")


# --- Photographs --------------------------------------------------------------------------------


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


# --- Bytes --------------------------------------------------------------------------------------


def test_same_data_same_bytes() -> None:
    assert png(influence_figure(40)) == png(influence_figure(40))
    histories = make_histories()
    first, second = (png(methods_module.training_progress(histories)) for _ in range(2))
    assert first == second


def test_no_global_state_is_left_behind() -> None:
    before = dict(matplotlib.rcParams)
    png(influence_figure(3))
    assert dict(matplotlib.rcParams) == before
