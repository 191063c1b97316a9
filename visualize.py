"""Which figure is drawn from what, by its path in the output folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import numpy as np
from matplotlib.figure import Figure

from reporting.estimate import doubts
from reporting.figures.clusters import cluster_categorization, cluster_sizes, influence_scores
from reporting.figures.gaps import GAP_FIGURES, demographic_gaps, fairness_comparison
from reporting.figures.keep_curve import keep_curve
from reporting.figures.methods import (
    efficiency_comparison,
    performance_comparison,
    performance_efficiency_tradeoff,
    recall_comparison,
    training_progress,
)
from reporting.figures.pairs import cells, weight_distribution
from reporting.figures.trust import wrong_captions
from reporting.figures.validation import influence_validation
from reporting.how_much import CURVE_FIGURE, share_kept
from reporting.standing import TRUST_FIGURE, narrow_sentence
from reporting.summary import GAP_RECALL_AT, RECALL_AT, Summary
from reporting.verdicts import compare
from reporting.words import RANDOM


def figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """A maker for every figure whose data there are, by its path in the output folder."""
    made: dict[str, Callable[[], Figure]] = {
        "stage1/cluster_sizes.png": partial(
            cluster_sizes,
            np.array([c["size"] for c in summary.clusters]),
            [c["terms"] for c in summary.clusters],
        )
    }
    if summary.trust is not None and summary.log_odds is not None:
        made[TRUST_FIGURE] = partial(
            wrong_captions, summary.log_odds, summary.trusted or {}, summary.trust
        )
    if summary.curve is not None:
        made[CURVE_FIGURE] = partial(keep_curve, summary.curve, share_kept(summary))
    made |= _curation_figures(summary)
    if not summary.metrics:
        return made
    made |= {
        f"evaluation/comparison_avg_recall@{k}.png": partial(
            recall_comparison,
            summary.metrics,
            f"avg_recall@{k}",
            title=f"Average recall@{k}, both directions, {summary.n_test_images:,} unseen images",
            encoder_recall=summary.encoder_metrics.get(f"avg_recall@{k}"),
        )
        for k in RECALL_AT
    }
    drawn = (demographic_gaps, fairness_comparison)
    for n_needed, (path, draw) in enumerate(zip(GAP_FIGURES, drawn, strict=True), start=1):
        if summary.n_scored_groups >= n_needed:
            made[path] = partial(draw, summary.gaps, GAP_RECALL_AT)
    return made | {
        "results/performance_comparison.png": partial(
            performance_comparison,
            summary.metrics,
            summary.encoder_metrics.get("mean_recall"),
            _differences_to_random(summary),
        ),
        "results/efficiency_comparison.png": partial(efficiency_comparison, summary.efficiency),
        "results/training_progress.png": partial(training_progress, summary.histories),
        "results/performance_efficiency_tradeoff.png": partial(
            performance_efficiency_tradeoff, summary.metrics, summary.efficiency
        ),
    }


def _differences_to_random(summary: Summary) -> dict[str, dict[str, tuple[float, float | None]]]:
    return {
        comparison: {
            m: compare(summary, comparison, m, RANDOM)[:2]
            for m in methods
            if RANDOM in methods and m != RANDOM
        }
        for comparison, methods in summary.metrics.items()
    }


def _curation_figures(summary: Summary) -> dict[str, Callable[[], Figure]]:
    made: dict[str, Callable[[], Figure]] = {}
    if summary.influence_scores is not None and summary.influence_stderr is not None:
        made["stage2/influence_scores.png"] = partial(
            influence_scores,
            summary.influence_scores,
            summary.influence_stderr,
            [c["terms"] for c in summary.clusters],
            _categories(summary, summary.influence_scores, summary.influence_stderr),
            harmful_threshold=summary.thresholds["harmful_threshold"],
            beneficial_threshold=summary.thresholds["beneficial_threshold"],
        )
    if summary.influence_validation is not None:
        checks = summary.influence_validation
        made["stage2/influence_validation.png"] = partial(
            influence_validation, checks["points"], checks
        )
    pairs = summary.pairs
    if pairs.values is not None and pairs.kept is not None:
        made["stage3/cells.png"] = partial(
            cells,
            pairs.values,
            pairs.kept,
            pairs.faulty,
            pairs.kinds(),
            " ".join(filter(None, (doubts(summary), narrow_sentence(summary)))),
        )
    if summary.categorization is not None:
        made["stage3/cluster_categorization.png"] = partial(
            cluster_categorization, summary.categorization
        )
        if summary.sample_weights is not None and summary.cluster_weights is not None:
            made["stage3/weight_distribution.png"] = partial(
                weight_distribution,
                summary.sample_weights,
                summary.cluster_weights,
                summary.categorization,
            )
    return made


def _categories(summary: Summary, scores: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """The category of every cluster; by the same rule where stage 3 was not loaded."""
    if summary.categorization is not None:
        categories = {c["cluster"]: c["category"] for c in summary.categorization}
        return np.array([categories[k] for k in range(len(scores))])
    certain = np.abs(scores) > NormalDist().inv_cdf(summary.thresholds["confidence"]) * stderr
    harmful = certain & (scores < summary.thresholds["harmful_threshold"])
    beneficial = certain & (scores > summary.thresholds["beneficial_threshold"])
    return np.select([harmful, beneficial], ["harmful", "beneficial"], "neutral")
