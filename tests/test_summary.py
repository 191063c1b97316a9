"""Invented runs, shared with the tests of the findings and the report; words and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from summary import Summary, enumerate_words, escape, paragraphs
from tests.test_visualize import (
    METHODS,
    NASTY,
    make_categorization,
    make_efficiency,
    make_gaps,
    make_histories,
    make_metrics,
    make_terms,
    make_validation,
)

INVERSE_HESSIAN: dict[str, Any] = {
    "removal_correction": False,
    "eigenvalues": [9.0, 2.0, 1.8, 1.5],
    "eigenvalue_residuals": [1e-6, 2e-6, 9e-5, 1e-5],
    "hessian": "lanczos",
    "curvature": "gauss_newton",
    "damping": 0.0123,
    "trace": 40.0,
    "trace_stderr": 1.2,
    "trace_share": 0.3575,
    "cosine_to_exact_solution": 0.8125,
}


def make_influence_info(estimator: str = "metagradient", **changes: Any) -> dict[str, Any]:
    """What stage 2 says of its estimate; `changes` replace its entries."""
    info: dict[str, Any] = {
        "estimator": estimator,
        "influence_seeds": 1,
        "validation_loss": 2.3456,
        "reference_steps": 480,
        "reference_schedule": 1560,
        "removal_correction": True,
        "eigenvalues": [],
        "eigenvalue_residuals": [],
        "n_evaluated": 100,
    }
    if estimator != "metagradient":
        info |= INVERSE_HESSIAN
    return info | changes


def make_summary(
    n_clusters: int = 20,
    methods: Sequence[str] = METHODS,
    n_seeds: int = 3,
    *,
    nasty: bool = False,
    mean_recall: dict[str, float] | None = None,
    **changes: Any,
) -> Summary:
    """An invented run; `changes` replace its fields."""
    categorization = make_categorization(n_clusters, nasty=nasty)
    by_cluster = {c["cluster"]: c for c in categorization}
    terms = make_terms(n_clusters, nasty=nasty)
    text = NASTY if nasty else "A dog runs over the beach with a red ball."
    n_curated = sum(c["pairs_kept"] for c in categorization)
    n_train = sum(c["size"] for c in categorization)
    dropped = {
        "wrong_caption": 61,
        "boilerplate": 34,
        "near_copy": 18,
        "good": 700,
        "rare group": 9,
    }
    in_data = {
        "wrong_caption": 100,
        "boilerplate": 50,
        "near_copy": 90,
        "good": 4000,
        "rare group": 60,
    }
    fields: dict[str, Any] = {
        "run": {
            "dataset": "synthetic",
            "dataset_description": "drawn scenes with known faults",
            "encoder": "embedded",
            "command": "python main.py --output_dir ./output --visualize",
            "seed": 42,
            "hardware": {"machine": "x86_64", "cpu_cores": 2},
            "packages": {"python": "3.11.9", "torch": "2.13.0"},
            "warnings": ["SYNTHETIC DATA: drawn scenes, no photographs."],
            "seconds": {"embedding": 80.0, "influence": 14.2},
            "total_seconds": 301.5,
            "settings": {"output_dir": "./output", "data_dir": None, "methods": list(methods)},
        },
        "n_train": n_train,
        "n_validation": 1000,
        "n_test_images": 1000,
        "n_test_captions": 5000,
        "skipped": {"broken image": 3, "empty caption": 0},
        "influence": [
            {
                **{k: c[k] for k in ("cluster", "terms", "size", "influence_percent")},
                "stderr_percent": c["stderr_percent"],
                "pairs_evaluated": 5,
                "meaning": "",
            }
            for c in categorization
        ],
        "influence_info": make_influence_info(n_evaluated=n_train),
        "influence_validation": None,
        "influence_scores": np.array(
            [by_cluster[k]["influence_percent"] / 100 for k in range(n_clusters)]
        ),
        "influence_stderr": np.array(
            [by_cluster[k]["stderr_percent"] / 100 for k in range(n_clusters)]
        ),
        "clusters": [
            {"cluster": k, "size": by_cluster[k]["size"], "terms": terms[k]}
            for k in range(n_clusters)
        ],
        "categorization": categorization,
        "cluster_weights": {
            str(k): 1.0 if by_cluster[k]["pairs_kept"] else 0.0 for k in range(n_clusters)
        },
        "sample_weights": np.linspace(0.5, 1.5, max(n_curated, 1)),
        "n_curated": n_curated,
        "thresholds": {
            "harmful_threshold": -0.001,
            "beneficial_threshold": 0.01,
            "confidence": 0.9,
            "target_size_ratio": 0.8,
            "max_weight": 5.0,
        },
        "metrics": make_metrics(methods, n_seeds, mean_recall),
        "encoder_metrics": dict.fromkeys(make_metrics(("random",))["same_epochs"]["random"], 12.0),
        "efficiency": make_efficiency(methods, n_seeds),
        "gaps": make_gaps(methods),
        "histories": make_histories(methods, n_seeds),
        "faults": {
            m: {
                f: {"in_data": in_data[f], "dropped": dropped[f] if m != "full" else 0}
                for f in in_data
            }
            for m in methods
        },
        "dropped_examples": [
            {
                "caption": text,
                "key": "img_001.jpg#2",
                "clip_score": 0.123,
                "influence_percent": -0.4,
                "cluster": 3,
                "terms": ["dog", "beach"],
                "why": "harmful cluster",
            }
        ],
    }
    return Summary(**(fields | changes))


BARE: dict[str, Any] = dict.fromkeys(
    (
        "influence",
        "influence_info",
        "influence_validation",
        "influence_scores",
        "influence_stderr",
        "categorization",
        "cluster_weights",
        "sample_weights",
        "faults",
    )
)
SUMMARIES = {
    "everything": make_summary(100, influence_validation=make_validation(20)),
    "an inverse Hessian": make_summary(influence_info=make_influence_info("first_order")),
    "validated with one seed": make_summary(
        6, influence_info=make_influence_info("step"), influence_validation=make_validation(6, 1)
    ),
    "too few to validate": make_summary(2, influence_validation=make_validation(2, 3, None)),
    "one seed, one cluster": make_summary(1, n_seeds=1),
    "hostile text": make_summary(20, nasty=True),
    "two methods": make_summary(3, ("random", "full")),
    "influencespace alone": make_summary(3, ("influencespace",)),
    "full data alone": make_summary(3, ("full",)),
    "no random": make_summary(3, ("influencespace", "clip_score_filtering", "full"), 1),
    "stages 2 and 3 not loaded": make_summary(3, **BARE, dropped_examples=[]),
    "nothing trained": make_summary(
        3, metrics={}, efficiency={}, gaps={}, histories={}, encoder_metrics={}
    ),
    "groups too small": make_summary(3, gaps=make_gaps(child=5, adult=4)),
    "nothing skipped, no warning": make_summary(3, skipped={}),
}


# --- Rankings ----------------------------------------------------------------------------------


def test_methods_are_ranked_by_hand() -> None:
    summary = make_summary(3, ("influencespace", "random", "full", "diversity_sampling"))
    assert summary.ranking("same_epochs") == ["influencespace", "random", "diversity_sampling"]
    assert summary.table_order("same_epochs")[-1] == "full"
    assert summary.best_rival("same_epochs") == "random"
    assert SUMMARIES["influencespace alone"].best_rival("same_epochs") is None
    assert SUMMARIES["full data alone"].ranking("same_epochs") == []
    assert summary.n_dropped == summary.n_train - summary.n_curated


# --- Words --------------------------------------------------------------------------------------


def test_escaped_text_keeps_to_its_cell() -> None:
    assert escape("a|b") == r"a\|b"
    assert escape("*x* _y_ snake_case $z$ <i>") == r"\*x\* \_y\_ snake_case \$z\$ \<i\>"
    assert escape("two\nlines") == "two lines"
    assert len(escape("x" * 500, 100)) == 100


def test_lists_in_words() -> None:
    assert enumerate_words(["a"]) == "a"
    assert enumerate_words(["a", "b"]) == "a and b"
    assert enumerate_words(["a", "b", "c"]) == "a, b and c"


def test_empty_paragraphs_are_left_out() -> None:
    assert paragraphs(["a", "", "b"]) == "a\n\nb"
    assert paragraphs([]) == ""
