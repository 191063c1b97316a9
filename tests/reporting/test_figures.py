"""Figures: what is drawn, read back from the artists, for few and many clusters and methods."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from attribution.keep_curve import GRID, KeepCurve
from baselines import FULL, INFLUENCESPACE
from reporting import words
from reporting.figures import clusters
from reporting.figures import methods as methods_module

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
SUBSETS = (  # of methods
    *(METHODS, ("random", FULL), (INFLUENCESPACE,), (FULL,), ("a_method_$x_named_" * 9, FULL)),
)


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


def make_curve(**best: Any) -> KeepCurve:
    """Recall of 60 - 30 (s - 0.7)^2 with an error of 2 |s - 0.7|; `best` replaces its entries.

    So 80 % kept give away 0.3 +/- 0.2 points, all pairs 2.7 +/- 0.6.
    """
    away = GRID - 0.7
    measured = np.repeat([0.25, 0.4, 0.55, 0.7, 0.85, 1.0], 2)
    found: dict[str, Any] = {
        "share": 0.74,
        "low": 0.68,
        "high": 0.8,
        "fault_share": [0.209, 0.191, 0.227],
        "check": {
            "share": 0.55,
            "recall": 59.3,
            "random": 57.1,
            "difference": 0.054,
            "stderr": 0.021,
        },
        "sorts_difficulty": False,
        "n_steps": 390,
        "n_seeds": 2,
        "validation_pairs": 764,
    }
    return KeepCurve(
        shares=GRID,
        recall=60 - 30 * away**2,
        recall_stderr=2 * np.abs(away),
        loss=1.5 + 2 * away**2,
        loss_stderr=0.1 * np.abs(away),
        measured_shares=measured,
        measured_recall=60 - 30 * (measured - 0.7) ** 2 + np.tile([-0.2, 0.2], 6),
        measured_loss=1.5 + 2 * (measured - 0.7) ** 2,
        best=found | best,
    )


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
    return len(segments(axes))


def segments(axes: Axes) -> list[np.ndarray]:
    """Both ends of every error bar and interval."""
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    return [np.asarray(segment) for c in lines for segment in c.get_segments()]


def dots(axes: Axes) -> np.ndarray:
    """Where every dot is."""
    scattered = [c for c in axes.collections if isinstance(c, PathCollection)]
    places = [np.asarray(c.get_offsets()) for c in scattered]
    return np.concatenate(places) if places else np.empty((0, 2))


def dot_colors(axes: Axes) -> list[str]:
    """The colour of every dot."""
    scattered = [c for c in axes.collections if isinstance(c, PathCollection)]
    return [to_hex(color).upper() for c in scattered for color in np.asarray(c.get_facecolor())]


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


def vertical_lines(axes: Axes) -> set[float]:
    """Where lines from the bottom to the top of the panel stand."""
    lines = [line for line in axes.lines if not isinstance(line, AxLine)]
    spans = [np.asarray(line.get_xdata()) for line in lines]
    tall = [np.asarray(line.get_ydata()).tolist() == [0, 1] for line in lines]
    return {round(float(x[0]), 6) for x, is_tall in zip(spans, tall, strict=True) if is_tall}


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
    return clusters.influence_scores(
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
