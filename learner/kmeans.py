"""K-means for sets that Lloyd's algorithm (1982) is too dear for: on a sample, then on every row.

The centres start as rows drawn by greedy k-means++ (Arthur & Vassilvitskii 2007) in a random
projection (Boutsidis et al. 2010), which keeps distances well enough to draw by. Lloyd's steps over
a sample bring them close, and three steps over all rows take away what chance has left of the
sample. Rows are read in blocks, so that a memory map will do, and every step costs a product of a
block and the centres.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy import sparse
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits
from tqdm import tqdm

# Above this many pairs k-means begins with a sample, and image groups are apart from topics
# (benchmarks/results/clustering.json).
SAMPLED_ABOVE = 50_000
SAMPLED = 32_768  # rows that the centres are fitted to,
SAMPLED_PER_CLUSTER = 64  # or more, where there are many clusters: with 20, 2 % more inertia
MOST_SAMPLED = 131_072  # bounds memory
SAMPLE_STEPS = 20  # over the sample, at most
SETTLED = 5e-4  # share of the inertia that a step over the sample must take off to be followed
FULL_STEPS = 3  # over all rows
DRAWN_FROM = 20  # rows a cluster that first centres are drawn from, at least `DRAWN_FROM_LEAST`
DRAWN_FROM_LEAST = 10_000
PROJECTED = 256  # dimensions in which they are drawn
ROWS_AT_ONCE = 8192


class Fitted(NamedTuple):
    """K centres and the nearest to each of n points."""

    labels: Int64[np.ndarray, " n"]
    centers: Float32[np.ndarray, "K d"]


class Sums(NamedTuple):
    """What a look at every point leaves: all that a step of Lloyd's needs."""

    labels: Int64[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]  # squared, to the nearest centre
    totals: Float64[np.ndarray, "K d"]
    counts: Int64[np.ndarray, " K"]


def sampled_kmeans(
    points: Float[np.ndarray, "n d"], n_clusters: int, rng: np.random.Generator
) -> Fitted:
    """Centres fitted to a sample, then to all points, and the nearest centre of every point.

    The inertia is within 1 % of what Lloyd's algorithm over all points ends with
    (benchmarks/results/clustering.json). A cluster may be empty where there are fewer distinct
    points than clusters.

    Args:
        points: such as a memory map: read in blocks of rows, in order.
        n_clusters: at most n.
        rng: draws the sample and the first centres.
    """
    size = sample_size(len(points), n_clusters)
    rows = np.sort(rng.choice(len(points), size, replace=False))
    sample = np.asarray(points[rows], dtype=np.float32)
    centers = fit_to_sample(sample, n_clusters, rng)
    del sample
    with tqdm(
        total=len(points) * (FULL_STEPS + 1),
        desc="clusters",
        unit="row",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        for _ in range(FULL_STEPS):
            centers = moved(points, centers, sum_up(points, centers, bar))
        return Fitted(sum_up(points, centers, bar).labels, centers)


def sample_size(n: int, n_clusters: int) -> int:
    """How many of n rows the centres are fitted to first."""
    return min(n, max(SAMPLED, min(MOST_SAMPLED, SAMPLED_PER_CLUSTER * n_clusters), n_clusters))


def fit_to_sample(
    sample: Float32[np.ndarray, "m d"], n_clusters: int, rng: np.random.Generator
) -> Float32[np.ndarray, "K d"]:
    """Centres after Lloyd's steps over all of a sample, until these take off little."""
    centers, before = _first_centers(sample, n_clusters, rng), np.inf
    with tqdm(
        total=len(sample) * SAMPLE_STEPS,
        desc="clusters of a sample",
        unit="row",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        for _ in range(SAMPLE_STEPS):
            found = sum_up(sample, centers, bar)
            centers = moved(sample, centers, found)
            inertia = float(found.distances.sum(dtype=np.float64))
            if inertia > before * (1 - SETTLED):
                break
            before = inertia
    return centers


def _first_centers(
    sample: Float32[np.ndarray, "m d"], n_clusters: int, rng: np.random.Generator
) -> Float32[np.ndarray, "K d"]:
    """Rows of the sample far from each other, as k-means++ draws them.

    Drawing K of m rows one after the other reads m rows K times: the one step whose cost grows
    with K^2, so of few rows, and of few dimensions.
    """
    n_rows = min(len(sample), max(DRAWN_FROM_LEAST, DRAWN_FROM * n_clusters))
    rows = np.sort(rng.choice(len(sample), n_rows, replace=False))
    projected = sample[rows]
    if sample.shape[1] > PROJECTED:
        projected = projected @ rng.standard_normal((sample.shape[1], PROJECTED), dtype=np.float32)
    with threadpool_limits(limits=1):  # thousands of small products, that threads would wait in
        picked = kmeans_plusplus(projected, n_clusters, random_state=int(rng.integers(2**31)))[1]
    drawn: np.ndarray = sample[rows[picked]]
    return drawn


def sum_up(
    points: Float[np.ndarray, "n d"],
    centers: Float32[np.ndarray, "K d"],
    bar: tqdm[Any] | None = None,
) -> Sums:
    """The nearest centre of every point, of equally near ones the first, and sums over them."""
    n, n_clusters = len(points), len(centers)
    labels, distances = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)
    totals, half_squares = np.zeros(centers.shape), (centers**2).sum(axis=1) / 2
    for start in range(0, n, ROWS_AT_ONCE):
        block = np.asarray(points[start : start + ROWS_AT_ONCE], dtype=np.float32)
        closeness = block @ centers.T
        closeness -= half_squares
        nearest = closeness.argmax(axis=1)
        rows = np.arange(len(block))
        squares = np.einsum("ij,ij->i", block, block)
        stop = start + len(block)
        labels[start:stop] = nearest
        distances[start:stop] = np.maximum(squares - 2 * closeness[rows, nearest], 0)
        # A product with a sparse matrix of ones adds up the rows of each cluster.
        ones = np.ones(len(block), dtype=np.float32)
        totals += sparse.csr_matrix((ones, (nearest, rows)), (n_clusters, len(block))) @ block
        if bar is not None:
            bar.update(len(block))
    return Sums(labels, distances, totals, np.bincount(labels, minlength=n_clusters))


def moved(
    points: Float[np.ndarray, "n d"], centers: Float32[np.ndarray, "K d"], found: Sums
) -> Float32[np.ndarray, "K d"]:
    """Each centre at the mean of its points; one without points at a point far from its own."""
    moved, filled = centers.copy(), found.counts > 0
    moved[filled] = found.totals[filled] / found.counts[filled, None]
    empty = np.flatnonzero(~filled)
    if len(empty):
        farthest = np.argsort(-found.distances, kind="stable")[: len(empty)]
        moved[empty] = points[np.sort(farthest)]
    return moved
