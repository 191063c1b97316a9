"""Figures: what is drawn, read back from the artists, for few and many clusters and methods."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import visualize
from visualize import FULL, INFLUENCESPACE

METHODS = (
    FULL,
    INFLUENCESPACE,
    "random",
    "clip_score_filtering",
    "diversity_sampling",
    "coreset_selection",
    "individual_influence",
)
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
            }
        )
    return entries


def make_metrics(
    methods: Sequence[str] = METHODS, n_seeds: int = 3, mean_recall: dict[str, float] | None = None
) -> dict[str, Any]:
    """Recall that rises with k; by method from 24 to 32, or as told."""
    levels = dict(zip(METHODS, (31.4, 30.9, 28.2, 31.6, 27.9, 26.3, 29.8), strict=True))
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
    seconds = dict(zip(METHODS, (0.0, 14.2, 0.001, 0.002, 0.01, 21.7, 9.6), strict=True))
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
