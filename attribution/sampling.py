"""Which pairs stand for their clusters where not every pair's influence is evaluated."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64


def sample_pairs(
    cluster_assignments: Int64[np.ndarray, " n"],
    samples_per_cluster: int,
    *,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " m"]:
    """Sorted indices of the pairs to evaluate: `samples_per_cluster` of each cluster, at random.

    A smaller cluster gives all of its pairs.
    """
    n, sizes = len(cluster_assignments), np.bincount(cluster_assignments)
    order = rng.permutation(n)
    order = order[np.argsort(cluster_assignments[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank_in_cluster = np.arange(n) - starts[cluster_assignments[order]]
    return np.sort(order[rank_in_cluster < samples_per_cluster])


def representation_weights(
    cluster_assignments: Int64[np.ndarray, " n"], evaluated: Int64[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """How many pairs of its cluster each evaluated pair stands for, scaled to mean one."""
    sizes = np.bincount(cluster_assignments)
    counts = np.bincount(cluster_assignments[evaluated], minlength=len(sizes))
    weights = (sizes / np.maximum(counts, 1))[cluster_assignments[evaluated]]
    return np.asarray(weights / weights.mean(), dtype=np.float64)
