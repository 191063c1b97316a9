"""Which pairs are kept and with what weight, from the influence of their cells.

Harmful cells are pruned, neutral ones retained, beneficial ones raised, by the exact solution of

    maximise  sum_c n_c w_c m_c - (1 / 2 rho) sum_c n_c (w_c - 1)^2
    subject to  0 <= w_c <= cap_c  and a budget

over cells of n_c pairs, mean influence m_c and weight w_c. The proximal term keeps weights near
one, where first-order influence holds; without it the whole budget goes to a few cells at the cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from scipy.optimize import brentq
from scipy.stats import norm

from settings import InputError, Settings, setting

HARMFUL, NEUTRAL, BENEFICIAL = "harmful", "neutral", "beneficial"


@dataclass(frozen=True)
class CurationConfig(Settings):
    """What is pruned, kept and raised."""

    target_size_ratio: float = setting(
        0.8, "size of the curated set as a share of the training pairs", above=0, at_most=1
    )
    harmful_threshold: float = setting(
        -0.001, "a cluster below this influence is harmful (-0.001: -0.1 %% of validation loss)"
    )
    beneficial_threshold: float = setting(
        0.01, "a cluster above this influence is beneficial (0.01: +1 %% of validation loss)"
    )
    confidence: float = setting(
        0.95,
        "how certain the sign must be before a cluster is called harmful or beneficial",
        at_least=0.5,
        below=1,
    )
    max_weight: float = setting(5.0, "largest weight of a cluster before scaling", at_least=1)

    def __post_init__(self) -> None:
        """Check the fields and that the thresholds do not contradict each other.

        Raises:
            InputError: a wrong value, or thresholds that overlap.
        """
        super().__post_init__()
        if self.harmful_threshold >= self.beneficial_threshold:
            raise InputError(
                f"--harmful_threshold ({self.harmful_threshold:g}) must be below "
                f"--beneficial_threshold ({self.beneficial_threshold:g})"
            )


@dataclass(frozen=True)
class CurationResult:
    """The curated subset: m of n training pairs, and why."""

    curated_indices: Int64[np.ndarray, " m"]  # sorted positions in the source
    sample_weights: Float64[np.ndarray, " m"]  # mean one
    curated_rows: Int64[np.ndarray, " m"]  # the same pairs as rows of the training arrays
    categorization: list[dict[str, Any]] = field(metadata={"file": "cluster_categorization.json"})
    cluster_weights: dict[str, float] = field(metadata={"file": "cluster_weights.json"})

    def training_weights(self, n: int) -> Float64[np.ndarray, " n"]:
        """The weight of every one of n training pairs, 0 where it was dropped."""
        weights = np.zeros(n)
        weights[self.curated_rows] = self.sample_weights
        return weights


def curated_size(n: int, target_size_ratio: float) -> int:
    """How many of n pairs are kept, at least one."""
    return max(1, round(target_size_ratio * n))


def curate(
    influence_scores: Float[np.ndarray, " K"],
    influence_stderr: Float[np.ndarray, " K"],
    cluster_assignments: Int64[np.ndarray, " n"],
    clip_scores: Float[np.ndarray, " n"],
    indices: Int64[np.ndarray, " n"],
    clusters: list[dict[str, Any]],
    config: CurationConfig,
) -> CurationResult:
    """The curated subset of exactly `curated_size` pairs, with weights.

    Within a cluster that is kept in part, the pairs whose image and text agree best stay: the
    cluster's influence does not tell its pairs apart. Where the harmful clusters hold more pairs
    than may be dropped, the least harmful of them are retained at weight one.

    Args:
        influence_scores: I_k, relative change of the validation loss without cluster k.
        influence_stderr: its standard error.
        cluster_assignments: cluster of each training pair; every cluster has a pair.
        clip_scores: image-text agreement of each training pair.
        indices: position of each training pair in the source, ascending.
        clusters: descriptions of the clusters (`terms`), for the readable result.
        config: thresholds, size and cap.
    """
    sizes = np.bincount(cluster_assignments)
    target = curated_size(len(indices), config.target_size_ratio)
    categories = categorize(influence_scores, influence_stderr, config)
    per_pair = sizes.sum() / sizes
    gains = shrunken_gains(influence_scores * per_pair, influence_stderr * per_pair, sizes)
    caps = np.select([categories == HARMFUL, categories == BENEFICIAL], [0, config.max_weight], 1.0)
    weights = solve_weights(gains, sizes, caps, target)
    values = cluster_values(gains, categories, influence_scores * per_pair)
    rows = select_rows(values, cluster_assignments, clip_scores, target)
    kept = np.bincount(cluster_assignments[rows], minlength=len(sizes))
    raised = np.maximum(weights, 1.0)  # a share below one is met by dropping pairs
    mean_weight = raised[cluster_assignments[rows]].mean()
    return CurationResult(
        curated_indices=indices[rows],
        sample_weights=raised[cluster_assignments[rows]] / mean_weight,
        curated_rows=rows,
        categorization=_readable_categories(
            categories, influence_scores, influence_stderr, sizes, kept, clusters
        ),
        cluster_weights={
            str(k): float(raised[k] / mean_weight) if kept[k] else 0.0 for k in range(len(sizes))
        },
    )


def categorize(
    scores: Float[np.ndarray, " K"], stderr: Float[np.ndarray, " K"], config: CurationConfig
) -> Shaped[np.ndarray, " K"]:
    """`harmful`, `neutral` or `beneficial` for each cluster.

    Beyond the threshold is not enough: the sign must be certain at `confidence`, one-sided.
    """
    certain = np.abs(scores) > norm.ppf(config.confidence) * stderr
    categories = np.full(len(scores), NEUTRAL, dtype=object)
    categories[certain & (scores < config.harmful_threshold)] = HARMFUL
    categories[certain & (scores > config.beneficial_threshold)] = BENEFICIAL
    return categories


def shrunken_gains(
    mean_influence: Float[np.ndarray, " K"],
    stderr: Float[np.ndarray, " K"],
    sizes: Int64[np.ndarray, " K"],
) -> Float64[np.ndarray, " K"]:
    """Influence of each cluster above the average, as certain as it is, in standard deviations.

        gain_k = (m_k - m) / s * t^2 / (t^2 + se_k^2),    t^2 = max(0, s^2 - mean se^2)

    with m and s the mean and standard deviation of m_k over pairs: empirical Bayes (Efron &
    Morris 1973), so that a cluster is not dropped or raised for the noise of its few samples.
    """
    mean = np.average(mean_influence, weights=sizes)
    variance = np.average((mean_influence - mean) ** 2, weights=sizes)
    if variance <= (1e-12 * mean) ** 2:  # equal but for rounding
        return np.zeros(len(sizes))
    between = max(0.0, variance - np.average(stderr**2, weights=sizes))
    trust = between / np.maximum(between + stderr**2, np.finfo(float).tiny)
    return np.asarray((mean_influence - mean) / np.sqrt(variance) * trust)


def solve_weights(
    gains: Float[np.ndarray, " K"],
    sizes: Int64[np.ndarray, " K"],
    caps: Float[np.ndarray, " K"],
    target: int,
) -> Float64[np.ndarray, " K"]:
    """The exact solution of the proximal programme whose budget keeps `target` pairs.

        w_c(mu) = clip(1 + gain_c - mu, 0, cap_c)

    mu, the price of a pair, is the root of sum_c n_c min(w_c, 1) = target: a cluster below weight
    one keeps that share of its pairs, one above keeps all of them and is up-weighted. Gains are in
    standard deviations of influence over pairs, which is rho = 1 in these units: one deviation is
    worth a weight of one. A negative price keeps pairs that the programme would drop, but raises
    no weight above one.

    Args:
        gains: (K,) rho m_c, up to a constant.
        sizes: (K,) n_c.
        caps: (K,) largest weights.
        target: pairs to keep; where the clusters of positive cap hold fewer, all of theirs are.
    """

    def shares_at(price: float) -> Float64[np.ndarray, " K"]:
        return np.asarray(np.clip(1 + gains - price, 0, np.minimum(caps, 1)))

    def surplus(price: float) -> float:
        return float(sizes @ shares_at(price) - target)

    free = gains[caps > 0]
    if len(free) == 0:
        return np.zeros(len(sizes))
    price, dearest = float(free.min()), float(1 + free.max())  # all free pairs kept, none kept
    if surplus(price) > 0:
        price = brentq(surplus, price, dearest, xtol=1e-12)
    raised = np.clip(gains - max(price, 0.0), 0, np.maximum(caps - 1, 0))
    return np.asarray(shares_at(price) + raised)


def cluster_values(
    gains: Float[np.ndarray, " K"],
    categories: Shaped[np.ndarray, " K"],
    mean_influence: Float[np.ndarray, " K"],
) -> Float64[np.ndarray, " K"]:
    """What orders the clusters when pairs are dropped: the gain, harmful clusters below all others.

    Two apart, the most harmful lowest, so that a harmful cluster goes whole before the next one.
    """
    values = gains.astype(np.float64)
    harmful = np.flatnonzero(categories == HARMFUL)
    least_harmful_first = harmful[np.argsort(-mean_influence[harmful], kind="stable")]
    floor = np.delete(gains, harmful).min() if len(harmful) < len(gains) else 0.0
    values[least_harmful_first] = floor - 2.0 * np.arange(1, len(harmful) + 1)
    return values


def select_rows(
    values: Float[np.ndarray, " K"],
    cluster_assignments: Int64[np.ndarray, " n"],
    clip_scores: Float[np.ndarray, " n"],
    target: int,
) -> Int64[np.ndarray, " m"]:
    """Sorted rows of the `target` pairs of highest priority.

        priority = value_k - (j - 1/2) / n_k        for the j-th of cluster k by CLIP score

    Every cluster so keeps its share min(w_k, 1) of the programme but for rounding, half a pair for
    itself or for each other cluster kept in part, and a smaller target keeps a subset of what a
    larger one keeps.
    """
    sizes = np.bincount(cluster_assignments, minlength=len(values))
    order = np.lexsort((-clip_scores, cluster_assignments))
    clusters = cluster_assignments[order]
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[clusters]
    priority = values[clusters] - (rank + 0.5) / sizes[clusters]
    rows: np.ndarray = np.sort(order[np.argsort(-priority, kind="stable")[:target]])
    return rows


def _readable_categories(
    categories: np.ndarray,
    scores: np.ndarray,
    stderr: np.ndarray,
    sizes: np.ndarray,
    kept: np.ndarray,
    clusters: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    return [
        {
            "cluster": int(k),
            "terms": list(clusters[k]["terms"]),
            "category": str(categories[k]),
            "influence_percent": round(100 * float(scores[k]), 5),
            "stderr_percent": round(100 * float(stderr[k]), 5),
            "size": int(sizes[k]),
            "pairs_kept": int(kept[k]),
            "pairs_dropped": int(sizes[k] - kept[k]),
        }
        for k in np.argsort(scores, kind="stable")
    ]


def faults_dropped(
    faults: Sequence[str], groups: Sequence[str], kept_rows: Int64[np.ndarray, " m"]
) -> dict[str, dict[str, int]]:
    """How many pairs of every known fault, and of the faultless, there are and were dropped.

    Args:
        faults: ground truth of each training pair, "" where it has none.
        groups: the rare group of each training pair, "" where it is in none.
        kept_rows: the pairs that a method keeps.
    """
    dropped = np.ones(len(faults), dtype=bool)
    dropped[kept_rows] = False
    labels = np.array([fault or "good" for fault in faults])
    kinds = {kind: labels == kind for kind in sorted(set(labels), key=lambda k: (k == "good", k))}
    if any(groups):
        kinds["rare group"] = np.array([bool(g) for g in groups]) & (labels == "good")
    return {
        kind: {"in_data": int(member.sum()), "dropped": int((member & dropped).sum())}
        for kind, member in kinds.items()
    }


def drop_examples(
    result: CurationResult,
    cluster_assignments: Int64[np.ndarray, " n"],
    clip_scores: Float[np.ndarray, " n"],
    n_examples: int,
) -> list[tuple[int, str]]:
    """Dropped pairs to look at, (row, why): the lowest CLIP score of each of the worst clusters."""
    dropped = np.ones(len(cluster_assignments), dtype=bool)
    dropped[result.curated_rows] = False
    examples = []
    for entry in result.categorization:  # most harmful cluster first
        members = np.flatnonzero(dropped & (cluster_assignments == entry["cluster"]))
        if len(members) == 0:
            continue
        row = int(members[np.argmin(clip_scores[members])])
        why = (
            f"its cluster is {entry['category']} and pruned whole"
            if entry["pairs_kept"] == 0
            else f"least agreement of image and text in a {entry['category']} cluster "
            f"that keeps {entry['pairs_kept']} of {entry['size']}"
        )
        examples.append((row, why))
    return examples[:n_examples]
