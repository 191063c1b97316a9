"""Which pairs stand for their clusters where not every pair is trained on or evaluated."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from learner.pairs import PairFeatures

MOST_BATCH = 128  # pairs that batches grow to, so that every pair is in one
LEAST_OF_CLUSTER = 5  # pairs that a sample holds of every cluster, or all of a smaller one


class TrainedPairs(NamedTuple):
    """Which pairs a training of few steps is on, and how many of them each batch holds."""

    rows: Int64[np.ndarray, " m"] | None  # sorted; None: all n pairs
    weights: Float[np.ndarray, " m"]  # how many of n / m pairs each stands for, mean one
    batch_size: int
    grown: bool  # beyond the batch that was asked for

    @classmethod
    def of(
        cls,
        cluster_assignments: Int64[np.ndarray, " n"],
        rows: Int64[np.ndarray, " m"] | None,
        batch_size: int,
        *,
        grown: bool,
    ) -> TrainedPairs:
        """These rows with their weights."""
        weights = (
            np.ones(len(cluster_assignments))
            if rows is None
            else representation_weights(cluster_assignments, rows)
        )
        return cls(rows, weights, batch_size, grown)

    def among(
        self, pairs: PairFeatures, cluster_assignments: Int64[np.ndarray, " n"]
    ) -> tuple[PairFeatures, Int64[np.ndarray, " m"]]:
        """Those of the n pairs, and their clusters."""
        if self.rows is None:
            return pairs, cluster_assignments
        return pairs.subset(self.rows), cluster_assignments[self.rows]


def trained_pairs(
    cluster_assignments: Int64[np.ndarray, " n"],
    batch_size: int,
    most_steps: int,
    *,
    rng: np.random.Generator,
) -> TrainedPairs:
    """All pairs where that many steps can hold them, or a random sample of every cluster.

    Where batches of the size wanted cannot hold all pairs within the steps, larger ones do, up to
    `MOST_BATCH`; beyond that, as many pairs as the steps hold are drawn, as many of each cluster as
    it has of the whole and at least `LEAST_OF_CLUSTER`. Nothing is drawn where all pairs are taken.
    """
    n, sizes = len(cluster_assignments), np.bincount(cluster_assignments)
    b = grown_batch_size(n, batch_size, most_steps)
    b = max(b, min(math.ceil(len(sizes) / most_steps), n))  # every cluster has a pair
    rows = None
    if b * most_steps < n:
        counts = proportional_counts(sizes, b * most_steps)
        rows = _some_of_each(cluster_assignments, counts, rng=rng)
    return TrainedPairs.of(cluster_assignments, rows, b, grown=b > batch_size)


def grown_batch_size(n_pairs: int, batch_size: int, n_steps: int) -> int:
    """The smallest batch of which this many steps hold all pairs, within bounds.

    Not smaller than `batch_size`, and not larger than `MOST_BATCH` unless that is.
    """
    return max(batch_size, min(math.ceil(n_pairs / n_steps), MOST_BATCH))


def proportional_counts(sizes: Int64[np.ndarray, " K"], total: int) -> Int64[np.ndarray, " K"]:
    """How many of the members of each cluster are taken: shares by size, none without a member.

    Args:
        sizes: >= 1, of the clusters.
        total: at least one a cluster, and at most all.
    """
    least = np.minimum(sizes, max(1, min(LEAST_OF_CLUSTER, total // len(sizes))))
    left = sizes - least
    exact = least + (total - least.sum()) * (left / max(left.sum(), 1))
    counts: np.ndarray = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts


def sample_pairs(
    cluster_assignments: Int64[np.ndarray, " n"],
    samples_per_cluster: int,
    *,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    """Sorted indices of the pairs to evaluate: `samples_per_cluster` of each cluster, at random.

    A smaller cluster gives all of its pairs.
    """
    return _some_of_each(cluster_assignments, samples_per_cluster, rng=rng)


def _some_of_each(
    cluster_assignments: Int64[np.ndarray, " n"],
    counts: Int64[np.ndarray, " K"] | int,
    *,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    n, sizes = len(cluster_assignments), np.bincount(cluster_assignments)
    most = np.broadcast_to(counts, len(sizes))
    order = rng.permutation(n)
    order = order[np.argsort(cluster_assignments[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank_in_cluster = np.arange(n) - starts[cluster_assignments[order]]
    return np.sort(order[rank_in_cluster < most[cluster_assignments[order]]])


def representation_weights(
    cluster_assignments: Int64[np.ndarray, " n"], evaluated: Int64[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """How many pairs of its cluster each evaluated pair stands for, scaled to mean one."""
    sizes = np.bincount(cluster_assignments)
    counts = np.bincount(cluster_assignments[evaluated], minlength=len(sizes))
    weights = (sizes / np.maximum(counts, 1))[cluster_assignments[evaluated]]
    return np.asarray(weights / weights.mean(), dtype=np.float64)
