"""Invented runs, shared with the tests of the findings and the report; words and rankings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import visualize
from reporting.summary import PairSummary, Summary, estimated_share, interval_text, trusted_recall
from reporting.words import enumerate_words, escape, paragraphs
from tests.reporting.test_figures import (
    METHODS,
    NASTY,
    make_categorization,
    make_curve,
    make_efficiency,
    make_gaps,
    make_histories,
    make_log_odds,
    make_metrics,
    make_terms,
    make_trust,
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


def make_pair_quality(**changes: Any) -> dict[str, Any]:
    """What stage 2 says of its influence of pairs; `changes` replace its entries."""
    quality: dict[str, Any] = {
        "pairs_evaluated": 40,
        "explained": 0.4321,
        "own_share": 0.25,
        "repeats_agree": 0.6543,
        "held_out_models": 10,
        "steps": 60,
        "validation_loss": 0.83,
        "cells": 40,
        "rounds": [make_round(1)],
    }
    return quality | changes


def make_round(number: int) -> dict[str, Any]:
    return {
        "round": number,
        "validation_loss": 0.9 - 0.05 * number,
        "kept": 320,
        "kept_before_too": None if number == 1 else 310,
        "explained": 0.5 - 0.1 * number,
    }


def make_pairs(categorization: Sequence[dict[str, Any]]) -> PairSummary:
    """Pairs of the cells above; those that were dropped have low agreement and are faulty."""
    cells = [cell for cluster in categorization for cell in cluster["cells"]]
    sizes = [cell["size"] for cell in cells]
    kept = np.repeat([cell["pairs_kept"] > 0 for cell in cells], sizes)
    near_copies = np.repeat([cell["near_copies"] for cell in cells], sizes)
    return PairSummary(
        bands=np.where(kept, 2, 0),
        band_names=tuple(f"{w} third of agreement" for w in ("lowest", "middle", "highest")),
        near_copies=near_copies,
        faulty=~kept,
        influence=np.where(kept, 120.0, -80.0),
        cells=np.repeat([cell["cell"] for cell in cells], sizes),
        values=np.where(kept, 1.0, -1.0),
        kept=kept,
    )


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
    log_odds, trusted = make_log_odds()
    fields: dict[str, Any] = {
        "trust": make_trust(),
        "log_odds": log_odds,
        "trusted": trusted,
        "trusted_metrics": make_metrics(methods, n_seeds, {"influencespace": 38.2}),
        "trusted_encoder_metrics": {"mean_recall": 14.0},
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
            "changed_settings": {"visualize": True, "methods": list(methods)},
        },
        "n_train": n_train,
        "n_validation": 1000,
        "n_test_images": 1000,
        "n_test_captions": 5000,
        "skipped": {"broken image": 3, "empty caption": 0},
        "account": "Of 30 captions of the source 17 are used, 3 skipped and 10 not read",
        "notes": ("columns image, caption (title not used)",),
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
        "pair_quality": make_pair_quality(pairs_evaluated=min(40, n_train)),
        "pairs": make_pairs(categorization),
        "clusters": [
            {"cluster": k, "size": by_cluster[k]["size"], "terms": terms[k]}
            for k in range(n_clusters)
        ],
        "categorization": categorization,
        "cluster_weights": {
            str(k): 1.0 if by_cluster[k]["pairs_kept"] else 0.0 for k in range(n_clusters)
        },
        "decisions": [
            {
                "split": "train",
                "decision": "kept",
                "reason": "its value is above the cut",
                "pairs": n_curated,
            },
            {
                "split": "train",
                "decision": "skipped",
                "reason": "broken | image",
                "pairs": 1234,
            },
        ],
        "group_retention": {
            "female": {"pairs": 50, "kept": 45, "retention": 0.9},
            "child": {"pairs": 0, "kept": 0, "retention": None},
        },
        "sample_weights": np.linspace(0.5, 1.5, max(n_curated, 1)),
        "n_curated": n_curated,
        "thresholds": {
            "harmful_threshold": -0.001,
            "beneficial_threshold": 0.01,
            "confidence": 0.9,
            "target_size_ratio": 0.8,
            "max_weight": 5.0,
            "agreement_weight": 0.5,
            "copy_price": 1.0,
            "faulty_weight": 0.01,
            "min_group_retention": 0.0,
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
                "value": -2.34,
                "cluster": 3,
                "terms": ["dog", "beach"],
                "why": "influence -1.8, agreement -1.1",
            }
        ],
    }
    summary = Summary(**(fields | changes))
    return dataclasses.replace(summary, figures=tuple(visualize.figures(summary)))


def kept_share(share: float, *, found: bool = False, **best: Any) -> Summary:
    """A run that keeps this share, asked for or found by the run; `best` is of its curve."""
    summary = make_summary(3, thresholds=make_summary(1).thresholds | {"target_size_ratio": share})
    asked = {"target_size_ratio": "auto" if found else share}
    run = summary.run | {"settings": summary.run["settings"] | asked}
    told = dataclasses.replace(summary, run=run, curve=make_curve(**best))
    return dataclasses.replace(told, figures=tuple(visualize.figures(told)))


NO_STAGE_2: dict[str, Any] = dict.fromkeys(
    (
        "influence",
        "influence_info",
        "influence_validation",
        "influence_scores",
        "influence_stderr",
        "pair_quality",
        *("trust", "log_odds", "trusted", "trusted_metrics", "trusted_encoder_metrics"),
    )
)
NO_STAGE_3: dict[str, Any] = dict.fromkeys(
    ("categorization", "cluster_weights", "decisions", "group_retention", "sample_weights")
)
BARE: dict[str, Any] = NO_STAGE_2 | NO_STAGE_3 | {"faults": None}
BARE["pairs"] = PairSummary(np.zeros(3, dtype=np.int64), ("any agreement",), np.ones(3, dtype=bool))
LOADED = make_pairs(make_categorization(3))
SUMMARIES = {
    "everything": make_summary(100, influence_validation=make_validation(20), curve=make_curve()),
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
    "stage 2 not loaded": make_summary(
        3,
        **NO_STAGE_2,
        pairs=dataclasses.replace(LOADED, influence=None, cells=None),
        dropped_examples=[],
    ),
    "stage 3 not loaded": make_summary(
        3,
        **NO_STAGE_3,
        pairs=dataclasses.replace(LOADED, values=None, kept=None),
        dropped_examples=[],
    ),
    "noisy held-out data": make_summary(3, trust=make_trust(0.21, 0.2)),
    "noisy and taken at its word": make_summary(
        3, n_seeds=1, trust=make_trust(0.21, None, taken_at_word=True)
    ),
    "a narrow target and a guard": make_summary(
        3,
        pair_quality=make_pair_quality(
            influence_weight=0.0,
            agreement_correlation=-0.41,
            guard="influence and agreement contradict each other (correlation -0.41)",
            relevance_auc=0.9,
            relevance_weight=0.4,
        ),
    ),
    "several rounds": make_summary(
        3, pair_quality=make_pair_quality(rounds=[make_round(1), make_round(2)])
    ),
    "nothing trained": make_summary(
        3, metrics={}, efficiency={}, gaps={}, histories={}, encoder_metrics={}
    ),
    "groups too small": make_summary(3, gaps=make_gaps(child=5, adult=4)),
    "a share that gives much away": kept_share(1.0),
    "a share below the curve": kept_share(0.1),
    "a share that was found": kept_share(0.74, found=True),
    "values sort difficulty": kept_share(0.8, fault_share=None, sorts_difficulty=True),
    "nothing skipped, no warning": make_summary(3, skipped={}, account="", notes=()),
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


def test_a_control_is_no_rival() -> None:
    methods = ("influencespace", "refined_agreement", "random", "influencespace_without_influence")
    summary = make_summary(3, methods)
    assert set(summary.ranking("same_epochs")) == set(methods)  # it stands in the tables
    assert summary.rivals("same_epochs") == ["random"]
    assert summary.best_rival("same_epochs") == "random"
    alone = make_summary(3, ("influencespace", "refined_agreement"))
    assert alone.best_rival("same_epochs") is None


# --- Pairs --------------------------------------------------------------------------------------


def test_kinds_of_pairs_by_hand() -> None:
    pairs = PairSummary(
        bands=np.array([0, 0, 0, 2, 2]),
        band_names=("low", "middle", "high"),
        near_copies=np.array([False, False, True, False, False]),
        faulty=np.array([True, False, True, False, False]),
        influence=np.array([-30.0, 10.0, 5.0, 7.0, 9.0]),
        cells=np.array([4, 4, 1, 0, 0]),
        values=np.array([-2.0, -1.0, -1.5, 1.0, 2.0]),
        kept=np.array([False, False, True, True, True]),
    )
    low = {"agreement": "low", "near_copies": False, "pairs": 2, "kept": 0, "faulty": 1}
    assert pairs.kinds() == [  # no pair is in the middle
        low | {"influence": -10.0},
        {**low, "near_copies": True, "pairs": 1, "kept": 1, "influence": 5.0},
        {**low, "agreement": "high", "kept": 2, "faulty": 0, "influence": 8.0},
    ]
    assert pairs.band_of_cell() == {0: "high", 1: "low", 4: "low"}
    assert pairs.n_protected == 1  # -1.5 is kept, -1 is not
    unknown = dataclasses.replace(
        pairs, faulty=None, influence=None, cells=None, values=None, kept=None
    )
    assert unknown.kinds()[0] == {**low, "kept": None, "faulty": None, "influence": None}
    assert unknown.band_of_cell() == {}
    assert unknown.n_protected == 0
    assert dataclasses.replace(pairs, kept=np.ones(5, dtype=bool)).n_protected == 0
    # The pair that was dropped at -1, or the one that was kept at -1.5, by a reviewer.
    for reviewed in ([0, -1, 0, 0, 0], [0, 0, 1, 0, 0], [-1, -1, 0, 0, 0]):
        said = dataclasses.replace(pairs, reviewed=np.array(reviewed, dtype=np.int8))
        assert said.n_protected == 0
    helped = dataclasses.replace(pairs, reviewed=np.array([-1, 0, 0, 0, 1], dtype=np.int8))
    assert helped.n_protected == 1


# --- Trust --------------------------------------------------------------------------------------


def test_recall_on_trusted_pairs_is_shown_where_captions_may_be_wrong() -> None:
    noisy = make_summary(3, trust=make_trust(test_share=0.02))
    assert noisy.shows_trusted
    assert trusted_recall(noisy, "same_epochs", "influencespace") == "38.20 ± 0.30"
    for changes in (
        {"trust": make_trust(test_share=0.019)},
        {"trust": make_trust(test_share=None)},
        {"trust": None},
        {"trust": make_trust(test_share=0.2), "trusted_metrics": None},
    ):
        assert not make_summary(3, **changes).shows_trusted
    unknown = make_summary(3, trusted_metrics=None)
    assert trusted_recall(unknown, "same_epochs", "influencespace") == "–"


def test_estimated_shares_in_words() -> None:
    known, unknown = (make_trust(share)["validation"] for share in (0.2, None))
    assert estimated_share(known) == "20.0 % (18.0 to 22.0)"
    assert interval_text(known) == "18.0 to 22.0"
    assert estimated_share(unknown) == "unknown"
    assert interval_text(unknown) == ""


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
